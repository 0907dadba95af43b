// Adds the array's sums over the blocks of one block row, for up to DEPTH rows of x.
//
// The first block of a block row overwrites what is there; with the last one the finished rows
// leave towards memory in the same cycle, so that nothing has to be cleared or drained.
module systolic_accumulators #(
    parameter int SIZE  = 16,
    parameter int DEPTH = 256
) (
    input  logic                     clk,
    // One cycle ahead of the sums, as a memory with registered reads wants.
    input  logic [$clog2(DEPTH)-1:0] next_row,
    // With the sums.
    input  logic                     valid,
    input  logic                     first,
    input  logic [$clog2(DEPTH)-1:0] row,
    input  logic [SIZE-1:0][31:0]    sums,
    output logic [SIZE-1:0][31:0]    totals
);
    logic [SIZE-1:0][31:0] memory[DEPTH];
    logic [SIZE-1:0][31:0] kept;

    always_comb
        for (int i = 0; i < SIZE; i++) totals[i] = sums[i] + (first ? 32'd0 : kept[i]);

    always_ff @(posedge clk) begin
        kept <= memory[next_row];
        if (valid) memory[row] <= totals;
    end
endmodule
