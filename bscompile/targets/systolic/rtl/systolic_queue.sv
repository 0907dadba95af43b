// A first-in first-out queue; the oldest entry is visible while `some` is set.
module systolic_queue #(
    parameter int WIDTH  = 96,
    parameter int LENGTH = 8
) (
    input  logic             clk,
    input  logic             reset,
    input  logic             push,
    input  logic [WIDTH-1:0] in,
    output logic             room,
    input  logic             pop,
    output logic [WIDTH-1:0] out,
    output logic             some
);
    localparam int Bits = $clog2(LENGTH);
    logic [WIDTH-1:0] entries[LENGTH];
    logic [Bits:0] head, tail;  // one bit more than an index, to tell full from empty

    assign some = head != tail;
    assign room = (tail - head) != (Bits + 1)'(LENGTH);
    assign out  = entries[head[Bits-1:0]];

    always_ff @(posedge clk) begin
        if (reset) begin
            head <= '0;
            tail <= '0;
        end else begin
            if (push && room) begin
                entries[tail[Bits-1:0]] <= in;
                tail <= tail + 1'b1;
            end
            if (pop && some) head <= head + 1'b1;
        end
    end
endmodule
