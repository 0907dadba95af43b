// One processing element: sum_out = sum_in + x * weight, a cycle later.
//
// Two weight registers make loads free: `active` multiplies while `spare` is filled with the next
// block. `swap` arrives with the first row of x that the next block is meant for, and travels to
// the right with it, so the change runs through the array as a diagonal wave and costs no cycle.
module systolic_pe (
    input  logic               clk,
    // Weights: the column's bus, and the token that says whose turn it is.
    input  logic signed [ 7:0] weight,
    input  logic               take_in,
    output logic               take_out,
    // Activations, from the left to the right.
    input  logic               swap_in,
    input  logic signed [ 7:0] x_in,
    output logic               swap_out,
    output logic signed [ 7:0] x_out,
    // Partial sums, from the top to the bottom.
    input  logic signed [31:0] sum_in,
    output logic signed [31:0] sum_out
);
    logic signed [7:0] spare, active;

    // The first row meets its block here already; `active` holds it from the next cycle on.
    wire signed [ 7:0] current = swap_in ? spare : active;
    wire signed [15:0] product = x_in * current;

    always_ff @(posedge clk) begin
        if (take_in) spare <= weight;
        if (swap_in) active <= spare;
        take_out <= take_in;
        swap_out <= swap_in;
        x_out    <= x_in;
        sum_out  <= sum_in + 32'(product);
    end
endmodule
