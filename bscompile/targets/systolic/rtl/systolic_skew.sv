// Delays lane i by i cycles, or by LANES-1-i when REVERSE: turns a row into a diagonal and back.
module systolic_skew #(
    parameter int LANES   = 16,
    parameter int WIDTH   = 8,
    parameter bit REVERSE = 0
) (
    input  logic                         clk,
    input  logic [LANES-1:0][WIDTH-1:0] in,
    output logic [LANES-1:0][WIDTH-1:0] out
);
    for (genvar i = 0; i < LANES; i++) begin : g_lane
        localparam int Delay = REVERSE ? LANES - 1 - i : i;
        if (Delay == 0) begin : g_wire
            assign out[i] = in[i];
        end else begin : g_line
            logic [Delay-1:0][WIDTH-1:0] line;
            always_ff @(posedge clk) begin
                line[0] <= in[i];
                for (int stage = 1; stage < Delay; stage++) line[stage] <= line[stage-1];
            end
            assign out[i] = line[Delay-1];
        end
    end
endmodule
