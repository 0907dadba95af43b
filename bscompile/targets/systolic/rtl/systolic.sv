// A weight-stationary int8 matrix multiplier: SIZE x SIZE elements, int32 sums, a command queue.
//
//     commands -> queue -> sequencer -> reads of weights and x
//                                           |
//     y  <- accumulators <- array <---------+
//
// A reference design: it exists to be simulated and read. Its memory is ideal, three ports that
// are never busy and answer in one cycle; addresses count words of SIZE elements.
module systolic #(
    parameter int SIZE  = 16,
    parameter int DEPTH = 256
) (
    input  logic                   clk,
    input  logic                   reset,
    input  logic [$clog2(DEPTH):0] rows,             // rows of x in this run, 1 to DEPTH
    // Commands.
    input  logic                   command_valid,
    output logic                   command_ready,
    input  logic [95:0]            command,
    // Memory.
    output logic                   weights_read,
    output logic [31:0]            weights_address,
    input  logic [SIZE-1:0][ 7:0]  weights_data,     // a cycle after weights_read
    output logic                   x_read,
    output logic [31:0]            x_address,
    input  logic [SIZE-1:0][ 7:0]  x_data,           // a cycle after x_read
    output logic                   y_write,
    output logic [31:0]            y_address,
    output logic [SIZE-1:0][31:0]  y_data,
    // Whether anything is left to do, and for how many cycles that has been so since the reset.
    output logic                   busy,
    output logic [63:0]            cycles
);
    localparam int RowBits = $clog2(DEPTH);
    localparam int Latency = 2 * SIZE;  // from a read of x to its sums

    logic [95:0] head;
    logic some, pop, idle;
    systolic_queue #(.WIDTH(96), .LENGTH(8)) u_queue (
        .clk, .reset,
        .push(command_valid), .in(command), .room(command_ready),
        .pop, .out(head), .some
    );

    // What travels beside a row of x.
    typedef struct packed {
        logic               valid;
        logic               first;
        logic               last;
        logic [RowBits-1:0] row;
        logic [31:0]        address;
    } tag_t;
    tag_t tag;
    logic weights_first, swap, streaming;

    systolic_sequencer #(.SIZE(SIZE), .DEPTH(DEPTH)) u_sequencer (
        .clk, .reset, .rows,
        .some, .command(head), .pop,
        .weights_read, .weights_first, .weights_address, .x_read, .x_address,
        .streaming, .swap, .first(tag.first), .last(tag.last), .row(tag.row),
        .y_address(tag.address), .idle
    );
    assign tag.valid = streaming;

    // The data come a cycle after the reads; a CLEAR streams zeros.
    logic first_weights_now, swap_now, x_now;
    always_ff @(posedge clk) begin
        first_weights_now <= weights_first;
        swap_now          <= swap;
        x_now             <= x_read;
    end

    logic [SIZE-1:0][31:0] sums;
    systolic_array #(.SIZE(SIZE)) u_array (
        .clk,
        .first_weights(first_weights_now), .weights(weights_data),
        .swap(swap_now), .x(x_now ? x_data : '0),
        .sums
    );

    tag_t tags[Latency];
    logic [Latency-1:0] in_flight;
    always_ff @(posedge clk) begin
        tags[0] <= tag;
        for (int i = 1; i < Latency; i++) tags[i] <= tags[i-1];
        if (reset) for (int i = 0; i < Latency; i++) tags[i].valid <= 1'b0;
    end
    always_comb for (int i = 0; i < Latency; i++) in_flight[i] = tags[i].valid;

    wire tag_t done = tags[Latency-1];
    systolic_accumulators #(.SIZE(SIZE), .DEPTH(DEPTH)) u_accumulators (
        .clk,
        .next_row(tags[Latency-2].row),
        .valid(done.valid), .first(done.first), .row(done.row),
        .sums, .totals(y_data)
    );
    assign y_write   = done.valid && done.last;
    assign y_address = done.address;

    assign busy = !idle || in_flight != '0;
    always_ff @(posedge clk)
        if (reset) cycles <= '0;
        else if (busy) cycles <= cycles + 1;
endmodule
