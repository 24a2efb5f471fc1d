// Multi-layer perceptrons with an ensemble axis, forward and backward, for the CPU that this is compiled on.
//
// Why by hand: at the sizes of control (256 wide, 256 rows) a library spends as much time between the products as in
// them. Here a block of rows walks through all layers while it is in the cache, bias, normalisation, ReLU and its mask
// are applied to sums still in registers or in the first cache, and threads meet at most three times in a call.
//
// Parameters are one vector, layer by layer: weight (E, I, O), bias (E, O), and with layer norm scale and shift (E, O)
// except in the last layer. Results depend neither on the number of threads nor on which of them did what.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

#if defined(__AVX512F__)
constexpr long LANES = 16, TALL = 12;
#elif defined(__AVX__)
constexpr long LANES = 8, TALL = 6;
#else
constexpr long LANES = 4, TALL = 8;
#endif
constexpr long WIDE = 2;       // vectors of columns in a tile; TALL x WIDE sums fill the registers
constexpr long BLOCK = 4 * TALL;  // rows that walk through the layers together
constexpr long AHEAD = 8;         // rows of the right factor asked for early: they lie too far apart for the hardware to guess
constexpr float NORM_EPS = 1e-5f;

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));

typedef int32_t Lanes __attribute__((vector_size(LANES * sizeof(int32_t))));

// The lanes of two vectors that `which` counts, those of `other` from LANES on.
inline Vec pick(Vec one, Vec other, Lanes which) {
#if defined(__clang__)
    Vec value;
    for (long lane = 0; lane < LANES; lane++) value[lane] = which[lane] < LANES ? one[which[lane]] : other[which[lane] - LANES];
    return value;
#else
    return __builtin_shuffle(one, other, which);
#endif
}

inline Vec load(const float* from, long count = LANES) {
    Vec value = {};
    if (count >= LANES) std::memcpy(&value, from, sizeof(Vec));
    else std::memcpy(&value, from, count * sizeof(float));
    return value;
}

inline void store(float* to, Vec value, long count = LANES) {
    if (count >= LANES) std::memcpy(to, &value, sizeof(Vec));
    else std::memcpy(to, &value, count * sizeof(float));
}

inline float sum(Vec value) {
    float total = 0;
    for (long lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
}

// ROWS x V sums over k of left(row, k) * right(k, columns); first(v) starts the sums, done(row, v, sum) takes them.
template <long ROWS, long V, class First, class Done>
inline __attribute__((always_inline)) void tile(long depth, const float* left, long row_step, long k_step,
                                                const float* right, long right_step, First first, Done done) {
    Vec sums[ROWS][V];
#pragma GCC unroll 16
    for (long row = 0; row < ROWS; row++)
#pragma GCC unroll 2
        for (long v = 0; v < V; v++) sums[row][v] = first(v);
    const float* group[(ROWS + 3) / 4];  // every fourth row has a pointer: few registers, simple addresses
    for (long g = 0; g < (ROWS + 3) / 4; g++) group[g] = left + 4 * g * row_step;
    for (long k = 0; k < depth; k++) {
        Vec columns[V];
#pragma GCC unroll 2
        for (long v = 0; v < V; v++) {
            std::memcpy(&columns[v], right + v * LANES, sizeof(Vec));
            __builtin_prefetch(right + AHEAD * right_step + v * LANES);
        }
#pragma GCC unroll 16
        for (long row = 0; row < ROWS; row++) {
            const float factor = group[row / 4][row % 4 * row_step];
#pragma GCC unroll 2
            for (long v = 0; v < V; v++) sums[row][v] += factor * columns[v];
        }
#pragma GCC unroll 4
        for (long g = 0; g < (ROWS + 3) / 4; g++) group[g] += k_step;
        right += right_step;
    }
#pragma GCC unroll 16
    for (long row = 0; row < ROWS; row++)
#pragma GCC unroll 2
        for (long v = 0; v < V; v++) done(row, v, sums[row][v]);
}

template <long V, class First, class Done>
void strip(long rows, long depth, const float* left, long row_step, long k_step, const float* right, long right_step,
           First first, Done done) {
    long row = 0;
    auto at = [&](long r, long v, Vec value) { done(row + r, v, value); };
    for (; row + TALL <= rows; row += TALL)
        tile<TALL, V>(depth, left + row * row_step, row_step, k_step, right, right_step, first, at);
    for (; row + 4 <= rows; row += 4)
        tile<4, V>(depth, left + row * row_step, row_step, k_step, right, right_step, first, at);
    for (; row < rows; row++)
        tile<1, V>(depth, left + row * row_step, row_step, k_step, right, right_step, first, at);
}

// rows x columns of left (rows, depth) times right (depth, columns). first(column, count) starts the sums of up to
// LANES columns, done(row, column, count, sums) takes them.
template <class First, class Done>
void product(long rows, long columns, long depth, const float* left, long row_step, long k_step, const float* right,
             long right_step, First first, Done done) {
    static thread_local std::vector<float> padded;
    for (long column = 0; column < columns; column += WIDE * LANES) {
        const long left_over = columns - column;
        const float* panel = right + column;
        long step = right_step;
        if (left_over < WIDE * LANES) {  // the last columns, filled up with zeros
            const long width = left_over > LANES ? WIDE * LANES : LANES;
            padded.assign(depth * width, 0.f);
            for (long k = 0; k < depth; k++)
                std::memcpy(&padded[k * width], panel + k * right_step, left_over * sizeof(float));
            panel = padded.data(), step = width;
        }
        auto begin = [&](long v) { return first(column + v * LANES, left_over - v * LANES); };
        auto end = [&](long row, long v, Vec value) { done(row, column + v * LANES, left_over - v * LANES, value); };
        if (left_over > LANES) strip<WIDE>(rows, depth, left, row_step, k_step, panel, step, begin, end);
        else strip<1>(rows, depth, left, row_step, k_step, panel, step, begin, end);
    }
}

// LANES x LANES numbers with row steps `from_step` and `to_step`, transposed in registers.
inline void transpose_block(const float* from, long from_step, float* to, long to_step) {
    Vec rows[LANES];
    for (long i = 0; i < LANES; i++) rows[i] = load(from + i * from_step);
#pragma GCC unroll 4
    for (long half = 1; half < LANES; half *= 2) {  // swap the off-diagonal quarters of ever larger squares
        Lanes upper, lower;
        for (int lane = 0; lane < LANES; lane++) {
            upper[lane] = lane & half ? LANES + lane - half : lane;
            lower[lane] = lane & half ? LANES + lane : lane + half;
        }
#pragma GCC unroll 16
        for (long i = 0; i < LANES; i++)
            if (!(i & half)) {
                const Vec one = rows[i], other = rows[i + half];
                rows[i] = pick(one, other, upper), rows[i + half] = pick(one, other, lower);
            }
    }
    for (long i = 0; i < LANES; i++) store(to + i * to_step, rows[i]);
}

// (inputs, outputs) -> (outputs, inputs)
void transpose(const float* from, float* to, long inputs, long outputs) {
    for (long i = 0; i < inputs; i += LANES)
        for (long o = 0; o < outputs; o += LANES)
            if (i + LANES <= inputs && o + LANES <= outputs)
                transpose_block(from + i * outputs + o, outputs, to + o * inputs + i, inputs);
            else
                for (long p = o; p < std::min(o + LANES, outputs); p++)
                    for (long q = i; q < std::min(i + LANES, inputs); q++) to[p * inputs + q] = from[q * outputs + p];
}

struct Layer {
    long inputs, outputs;
    long weight, bias, scale, shift;       // offsets in the parameters, of member 0; scale is -1 without layer norm
    long hidden, normal, rate;             // offsets in the kept activations: after ReLU, normalised, 1 / std
    long slope;                            // offset in the scratch: gradient before the bias (E, B, O)
    long flipped;                          // offset in the scratch: transposed weights (E, O, I)
    long partial;                          // offset in the scratch: column sums of blocks (E, blocks, 3, O)
    bool last;
};

struct Net {
    long members, rows, blocks, kept, scratch;
    std::vector<Layer> layers;

    // sizes: members, layers, layer_norm, widths...
    Net(const int64_t* sizes, long rows, long evaluated)
        : members(evaluated), rows(rows), blocks((rows + BLOCK - 1) / BLOCK), kept(0), scratch(0) {
        const long all = sizes[0], count = sizes[1];
        const bool norm = sizes[2] != 0;
        long offset = 0;
        for (long depth = 0; depth < count; depth++) {
            Layer layer = {};
            layer.inputs = sizes[3 + depth], layer.outputs = sizes[4 + depth], layer.last = depth == count - 1;
            const long area = layer.inputs * layer.outputs, each = layer.outputs;
            layer.weight = offset, layer.bias = offset += all * area, offset += all * each;
            layer.scale = layer.shift = -1;
            if (norm && !layer.last)
                layer.scale = offset, layer.shift = offset += all * each, offset += all * each;
            layer.hidden = kept, kept += layer.last ? 0 : evaluated * rows * each;
            if (layer.scale >= 0)
                layer.normal = kept, kept += evaluated * rows * each, layer.rate = kept, kept += evaluated * rows;
            layer.slope = scratch, scratch += evaluated * rows * each;
            layer.flipped = scratch, scratch += evaluated * area;
            layer.partial = scratch, scratch += evaluated * blocks * 3 * each;
            layers.push_back(layer);
        }
    }
};

// In place: z -> relu(scale * normal(z) + shift) for one row; keeps the normalised row and 1 / std.
void normalise(float* row, float* normal, float* rate, const float* scale, const float* shift, long width) {
    Vec total = {}, squares = {};
    for (long o = 0; o < width; o += LANES) total += load(row + o, width - o);
    const float mean = sum(total) / width;
    for (long o = 0; o < width; o += LANES) {
        Vec offset = load(row + o, width - o) - mean;
        if (width - o < LANES)
            for (long lane = width - o; lane < LANES; lane++) offset[lane] = 0;
        squares += offset * offset;
    }
    *rate = 1 / std::sqrt(sum(squares) / width + NORM_EPS);
    for (long o = 0; o < width; o += LANES) {
        const Vec one = (load(row + o, width - o) - mean) * *rate;
        const Vec value = one * load(scale + o, width - o) + load(shift + o, width - o);
        store(normal + o, one, width - o);
        store(row + o, value < 0 ? Vec{} : value, width - o);
    }
}

// In place: the gradient of a row behind scale and shift -> that of the row before the normalisation.
void normalise_back(float* slope, const float* normal, float rate, const float* scale, long width) {
    Vec total = {}, along = {};
    for (long o = 0; o < width; o += LANES) {
        const Vec one = load(slope + o, width - o) * load(scale + o, width - o);
        total += one, along += one * load(normal + o, width - o);
    }
    const float mean = sum(total) / width, share = sum(along) / width;
    for (long o = 0; o < width; o += LANES) {
        const Vec one = load(slope + o, width - o) * load(scale + o, width - o);
        store(slope + o, rate * (one - mean - share * load(normal + o, width - o)), width - o);
    }
}

inline long chosen(const int64_t* which, long member) { return which ? which[member] : member; }

}  // namespace

extern "C" {

// Floats to keep from forward to backward, and floats of scratch that backward needs.
void mlp_space(const int64_t* sizes, int64_t rows, int64_t evaluated, int64_t* space) {
    const Net net(sizes, rows, evaluated);
    space[0] = net.kept, space[1] = net.scratch;
}

// x (B, I), or (E', B, I) unless shared -> out (E', B, O); which (E') are the members, null for all.
void mlp_forward(const int64_t* sizes, int64_t rows, int64_t evaluated, const int64_t* which, int64_t shared,
                 const float* x, const float* parameters, float* kept, float* out) {
    const Net net(sizes, rows, evaluated);
#pragma omp parallel for schedule(dynamic, 1)
    for (long task = 0; task < net.members * net.blocks; task++) {
        const long member = task / net.blocks, from = task % net.blocks * BLOCK;
        const long count = std::min(BLOCK, rows - from), own = chosen(which, member);
        const float* input = x + ((shared ? 0 : member * rows) + from) * net.layers[0].inputs;
        for (const Layer& layer : net.layers) {
            const long width = layer.outputs, place = (member * rows + from) * width;
            float* output = layer.last ? out + place : kept + layer.hidden + place;
            const float* bias = parameters + layer.bias + own * width;
            const bool rectify = !layer.last && layer.scale < 0;
            product(count, width, layer.inputs, input, layer.inputs, 1,
                    parameters + layer.weight + own * layer.inputs * width, width,
                    [&](long o, long lanes) { return load(bias + o, lanes); },
                    [&](long row, long o, long lanes, Vec value) {
                        store(output + row * width + o, rectify ? (value < 0 ? Vec{} : value) : value, lanes);
                    });
            if (layer.scale >= 0)
                for (long row = 0; row < count; row++)
                    normalise(output + row * width, kept + layer.normal + place + row * width,
                              kept + layer.rate + member * rows + from + row, parameters + layer.scale + own * width,
                              parameters + layer.shift + own * width, width);
            input = output;
        }
    }
}

// Gradients of what forward computed, for slope_out (E', B, O). slope_x (E', B, I) and slope_parameters (as the
// parameters; those of members not evaluated are not written) are left out when null.
void mlp_backward(const int64_t* sizes, int64_t rows, int64_t evaluated, const int64_t* which, int64_t shared,
                  const float* x, const float* parameters, const float* kept, const float* slope_out, float* scratch,
                  float* slope_x, float* slope_parameters) {
    const Net net(sizes, rows, evaluated);
    const long depth = net.layers.size(), lowest = slope_x ? 0 : 1;
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < net.members * (depth - lowest); task++) {
            const Layer& layer = net.layers[lowest + task / net.members];
            const long member = task % net.members, area = layer.inputs * layer.outputs;
            transpose(parameters + layer.weight + chosen(which, member) * area,
                      scratch + layer.flipped + member * area, layer.inputs, layer.outputs);
        }
        // down the layers, a block of rows at a time
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < net.members * net.blocks; task++) {
            const long member = task / net.blocks, block = task % net.blocks, from = block * BLOCK;
            const long count = std::min(BLOCK, rows - from), own = chosen(which, member);
            // slopes that no weight needs stay in the cache: two buffers in turn, this layer's and the one's above
            static thread_local std::vector<float> passing[2];
            const float* slope_above = nullptr;
            for (long l = depth - 1; l >= 0; l--) {
                const Layer& layer = net.layers[l];
                const long width = layer.outputs, place = (member * rows + from) * width;
                if (!slope_parameters) passing[l % 2].resize(BLOCK * width);
                float* slope = slope_parameters ? scratch + layer.slope + place : passing[l % 2].data();
                if (layer.last) {
                    std::memcpy(slope, slope_out + place, count * width * sizeof(float));
                } else {
                    const Layer& above = net.layers[l + 1];
                    const float* hidden = kept + layer.hidden + place;
                    product(count, width, above.outputs, slope_above, above.outputs, 1, scratch + above.flipped + member * width * above.outputs, width,
                            [](long, long) { return Vec{}; },
                            [&](long row, long o, long lanes, Vec value) {
                                const Vec open = load(hidden + row * width + o, lanes);
                                store(slope + row * width + o, open > 0 ? value : Vec{}, lanes);
                            });
                }
                float* partial = scratch + layer.partial + (member * net.blocks + block) * 3 * width;
                if (layer.scale >= 0) {
                    const float* normal = kept + layer.normal + place;
                    if (slope_parameters)
                        for (long o = 0; o < width; o += LANES) {
                            Vec scale = {}, shift = {};
                            for (long row = 0; row < count; row++) {
                                const Vec one = load(slope + row * width + o, width - o);
                                scale += one * load(normal + row * width + o, width - o), shift += one;
                            }
                            store(partial + width + o, scale, width - o), store(partial + 2 * width + o, shift, width - o);
                        }
                    for (long row = 0; row < count; row++)
                        normalise_back(slope + row * width, normal + row * width,
                                       kept[layer.rate + member * rows + from + row],
                                       parameters + layer.scale + own * width, width);
                }
                if (slope_parameters)
                    for (long o = 0; o < width; o += LANES) {
                        Vec bias = {};
                        for (long row = 0; row < count; row++) bias += load(slope + row * width + o, width - o);
                        store(partial + o, bias, width - o);
                    }
                slope_above = slope;
            }
            if (slope_x) {
                const Layer& first = net.layers[0];
                const long width = first.inputs;
                float* to = slope_x + (member * rows + from) * width;
                product(count, width, first.outputs, slope_above, first.outputs, 1, scratch + first.flipped + member * width * first.outputs, width,
                        [](long, long) { return Vec{}; },
                        [&](long row, long i, long lanes, Vec value) { store(to + row * width + i, value, lanes); });
            }
        }
        if (slope_parameters) {
            // weights: inputs of a layer, transposed, times its slopes, a strip of the inputs at a time
            long strips = 0;
            for (const Layer& layer : net.layers) strips += (layer.inputs + BLOCK - 1) / BLOCK;
#pragma omp for schedule(dynamic, 1)
            for (long task = 0; task < net.members * strips; task++) {
                const long member = task % net.members, own = chosen(which, member);
                long piece = task / net.members, l = 0;
                for (; piece >= (net.layers[l].inputs + BLOCK - 1) / BLOCK; l++)
                    piece -= (net.layers[l].inputs + BLOCK - 1) / BLOCK;
                const Layer& layer = net.layers[l];
                const long width = layer.outputs, from = piece * BLOCK;
                const float* input = l ? kept + net.layers[l - 1].hidden + member * rows * layer.inputs
                                       : x + (shared ? 0 : member * rows * layer.inputs);
                float* to = slope_parameters + layer.weight + own * layer.inputs * width + from * width;
                product(std::min(BLOCK, layer.inputs - from), width, rows, input + from, 1, layer.inputs,
                        scratch + layer.slope + member * rows * width, width, [](long, long) { return Vec{}; },
                        [&](long row, long o, long lanes, Vec value) { store(to + row * width + o, value, lanes); });
                if (piece == 0) {
                    const long kinds = layer.scale >= 0 ? 3 : 1;
                    const long targets[3] = {layer.bias, layer.scale, layer.shift};
                    for (long kind = 0; kind < kinds; kind++)
                        for (long o = 0; o < width; o++) {
                            float total = 0;
                            for (long block = 0; block < net.blocks; block++)
                                total += scratch[layer.partial + ((member * net.blocks + block) * 3 + kind) * width + o];
                            slope_parameters[targets[kind] + own * width + o] = total;
                        }
                }
            }
        }
    }
}

// One step of Adam over n parameters; rate and root carry the bias corrections.
void adam_step(int64_t n, float* parameters, const float* slope, float* first, float* second, float rate, float root,
               float keep_first, float keep_second, float eps) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        first[i] += (slope[i] - first[i]) * (1 - keep_first);
        second[i] = second[i] * keep_second + slope[i] * slope[i] * (1 - keep_second);
        parameters[i] -= rate * first[i] / (std::sqrt(second[i]) * root + eps);
    }
}

}  // extern "C"
