// SIZE x SIZE processing elements: row k holds the weights of input k, column n those of output n.
//
// Everything enters as whole rows and is skewed here, so that x[k] meets the partial sum of its
// column in the right cycle; the sums are straightened again at the bottom. A row of x that enters
// in cycle t leaves as SIZE sums in cycle t + 2 SIZE - 1.
//
// A block's rows of weights enter one per cycle, `first_weights` with row 0; row k of column n is
// taken k + n cycles later. x may follow one cycle behind row 0 of its block.
module systolic_array #(
    parameter int SIZE = 16
) (
    input  logic                             clk,
    input  logic                             first_weights,
    input  logic        [SIZE-1:0][ 7:0]     weights,
    input  logic                             swap,
    input  logic        [SIZE-1:0][ 7:0]     x,
    output logic        [SIZE-1:0][31:0]     sums
);
    // Weights: token and data of column n are n cycles late, so that one bus serves a column.
    logic [SIZE-1:0][8:0] weights_straight, weights_skewed;
    // Activations: input k is k cycles late.
    logic [SIZE-1:0][8:0] x_straight, x_skewed;
    logic [SIZE-1:0][31:0] sums_skewed;

    always_comb
        for (int i = 0; i < SIZE; i++) begin
            weights_straight[i] = {first_weights, weights[i]};
            x_straight[i]       = {swap, x[i]};
        end

    systolic_skew #(.LANES(SIZE), .WIDTH(9)) u_weights
        (.clk, .in(weights_straight), .out(weights_skewed));
    systolic_skew #(.LANES(SIZE), .WIDTH(9)) u_x
        (.clk, .in(x_straight), .out(x_skewed));
    systolic_skew #(.LANES(SIZE), .WIDTH(32), .REVERSE(1)) u_sums
        (.clk, .in(sums_skewed), .out(sums));

    for (genvar k = 0; k < SIZE; k++) begin : g_row
        for (genvar n = 0; n < SIZE; n++) begin : g_column
            logic take, take_next, swap_here, swap_next;
            logic signed [7:0] x_here, x_next;
            logic signed [31:0] sum_here, sum_next;

            if (k == 0) begin : g_top
                assign take     = weights_skewed[n][8];
                assign sum_here = '0;
            end else begin : g_inner
                assign take     = g_row[k-1].g_column[n].take_next;
                assign sum_here = g_row[k-1].g_column[n].sum_next;
            end
            if (n == 0) begin : g_left
                assign {swap_here, x_here} = x_skewed[k];
            end else begin : g_right
                assign swap_here = g_row[k].g_column[n-1].swap_next;
                assign x_here    = g_row[k].g_column[n-1].x_next;
            end

            systolic_pe u_pe (
                .clk,
                .weight(weights_skewed[n][7:0]), .take_in(take), .take_out(take_next),
                .swap_in(swap_here), .x_in(x_here), .swap_out(swap_next), .x_out(x_next),
                .sum_in(sum_here), .sum_out(sum_next)
            );

            // What leaves the array at its far edges ends there.
            if (n == SIZE - 1) begin : g_right_edge
                wire unused = &{swap_next, x_next};
            end
            if (k == SIZE - 1) begin : g_bottom_edge
                wire unused = take_next;
            end
        end
    end

    for (genvar n = 0; n < SIZE; n++) begin : g_bottom
        assign sums_skewed[n] = g_row[SIZE-1].g_column[n].sum_next;
    end
endmodule
