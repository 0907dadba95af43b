// Takes commands from the queue, one a cycle and in order, and turns them into memory reads.
//
//   LOAD   from      read SIZE words of weights from `from` on, into the spare registers
//   MATMUL from to   read `rows` words of x, x_stride apart, with the block loaded last;
//                    `to` is where the results go, y_stride apart, if this is the last block
//   CLEAR  to        `rows` zero rows of results: a block row without any live block
//   SHAPE  x y       set x_stride and y_stride
//
// A LOAD waits until the spare registers are free, a MATMUL until they are being filled and the
// x port is free. So while a block multiplies the next one is loaded: a block takes
// max(rows, SIZE) cycles. tests/targets/systolic holds that to the cycle.
module systolic_sequencer #(
    parameter int SIZE  = 16,
    parameter int DEPTH = 256
) (
    input  logic                     clk,
    input  logic                     reset,
    input  logic [$clog2(DEPTH):0]   rows,
    // The queue.
    input  logic                     some,
    input  logic [95:0]              command,
    output logic                     pop,
    // Reads; the data arrive in the next cycle.
    output logic                     weights_read,
    output logic                     weights_first,
    output logic [31:0]              weights_address,
    output logic                     x_read,
    output logic [31:0]              x_address,
    // What belongs to the row of x in this cycle.
    output logic                     streaming,
    output logic                     swap,
    output logic                     first,
    output logic                     last,
    output logic [$clog2(DEPTH)-1:0] row,
    output logic [31:0]              y_address,
    output logic                     idle
);
    localparam int RowBits  = $clog2(DEPTH) + 1;
    localparam int LoadBits = $clog2(SIZE) + 1;
    typedef enum logic [1:0] {Load, Matmul, Clear, Shape} opcode_t;

    // Word 0: bits 1:0 opcode, bit 8 first block, bit 9 last block. Word 1: from. Word 2: to.
    wire opcode_t    opcode   = opcode_t'(command[1:0]);
    wire             is_first = command[8];
    wire             is_last  = command[9];
    wire      [31:0] from     = command[63:32];
    wire      [31:0] to       = command[95:64];
    wire             unused   = &{command[31:10], command[7:2]};

    logic [LoadBits-1:0] load_left;
    logic [RowBits-1:0] rows_left;
    logic [31:0] x_stride, y_stride;
    logic spare_taken, reading;

    // In its last cycle a unit can take the next command.
    wire load_free   = load_left <= LoadBits'(1);
    wire stream_free = rows_left <= RowBits'(1);

    always_comb
        unique case (opcode)
            Load:   pop = some && load_free && !spare_taken;
            Matmul: pop = some && stream_free && spare_taken;
            Clear:  pop = some && stream_free;
            Shape:  pop = some;
        endcase

    assign weights_read  = load_left != 0;
    assign weights_first = load_left == LoadBits'(SIZE);
    assign streaming     = rows_left != 0;
    assign x_read        = streaming && reading;
    assign swap          = x_read && row == 0;
    assign idle          = !some && !weights_read && !streaming;

    always_ff @(posedge clk) begin
        if (weights_read) begin
            load_left       <= load_left - 1'b1;
            weights_address <= weights_address + 1;
        end
        if (streaming) begin
            rows_left <= rows_left - 1'b1;
            row       <= row + 1'b1;
            x_address <= x_address + x_stride;
            y_address <= y_address + y_stride;
        end
        if (pop)
            unique case (opcode)
                Load: begin
                    load_left       <= LoadBits'(SIZE);
                    weights_address <= from;
                    spare_taken     <= 1'b1;
                end
                Matmul, Clear: begin
                    rows_left <= rows;
                    row       <= '0;
                    x_address <= from;
                    y_address <= to;
                    reading   <= opcode == Matmul;
                    first     <= is_first || opcode == Clear;
                    last      <= is_last || opcode == Clear;
                    if (opcode == Matmul) spare_taken <= 1'b0;
                end
                Shape: begin
                    x_stride <= from;
                    y_stride <= to;
                end
            endcase
        if (reset) begin
            load_left   <= '0;
            rows_left   <= '0;
            spare_taken <= 1'b0;
        end
    end
endmodule
