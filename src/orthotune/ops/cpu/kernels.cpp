// The three methods' passes over activations and weights, each reading its input once. See kernels.py for what each
// exported function computes; orthotune/ops/*.py hold the same maths in PyTorch.
//
// All matrices are row-major with contiguous rows. Sums over rows are kept per thread and added in thread order, so a
// result depends on the number of threads but not on timing.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int K = 16;      // coordinates a block of rotations acts on: one cache line of float32
constexpr int LEVELS = 4;  // log2 K rounds

using real = REAL;  // float or double, chosen by the compiler's command line
typedef real vec __attribute__((vector_size(K * sizeof(real)), aligned(sizeof(real))));

vec load(const real* from) {
    return *reinterpret_cast<const vec*>(from);
}

void store(real* to, vec value) {
    *reinterpret_cast<vec*>(to) = value;
}

real sum(vec v) {
    real parts[K];
    store(parts, v);
    for (int half = K / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    return parts[0];
}

real dot(const real* a, const real* b, int64_t count) {
    vec parts[4] = {};
    int64_t i = 0;
    for (; i + 4 * K <= count; i += 4 * K)
        for (int p = 0; p < 4; ++p) parts[p] += load(a + i + p * K) * load(b + i + p * K);
    for (; i + K <= count; i += K) parts[0] += load(a + i) * load(b + i);
    real total = i ? sum(parts[0] + parts[1] + (parts[2] + parts[3])) : real(0);
    for (; i < count; ++i) total += a[i] * b[i];
    return total;
}

void axpy(real alpha, const real* x, real* y, int64_t count) {
    int64_t i = 0;
    for (; i + K <= count; i += K) store(y + i, load(y + i) + alpha * load(x + i));
    for (; i < count; ++i) y[i] += alpha * x[i];
}

// Runs body(first, last, thread) on each thread's share of [0, count), cut at multiples of step.
template <typename Body>
void parallel(int64_t count, int64_t step, int64_t threads, Body body) {
    const int64_t steps = (count + step - 1) / step;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t t = 0; t < threads; ++t) {
        const int64_t first = steps * t / threads * step, last = std::min(count, steps * (t + 1) / threads * step);
        if (first < last) body(first, last, t);
    }
}

// Adds the threads' partial sums: parts is (threads, count), the total goes to out.
void reduce(const std::vector<real>& parts, int64_t count, int64_t threads, real* out) {
    std::copy(parts.begin(), parts.begin() + count, out);
    for (int64_t t = 1; t < threads; ++t) axpy(real(1), parts.data() + t * count, out, count);
}

// ---- The tree of rotations -----------------------------------------------------------------------------------------

// A stage is LEVELS rounds: inside blocks of K neighbouring coordinates they multiply out to one K x K matrix each. The
// next stage is the rest of the tree, on the first coordinate of each block.
struct Stage {
    int64_t width, blocks, offset;         // offset: of its matrices among those of all stages, in blocks
    int64_t first[LEVELS], pairs[LEVELS];  // of each round: first rotation, number of pairs
};

std::vector<Stage> stages_of(int64_t width) {
    std::vector<Stage> stages;
    int64_t first = 0, offset = 0;
    while (width > 1) {
        Stage stage{width, (width + K - 1) / K, offset, {}, {}};
        for (int level = 0; level < LEVELS; ++level) {
            stage.first[level] = first;
            stage.pairs[level] = width / 2;
            first += width / 2;
            width = (width + 1) / 2;
        }
        offset += stage.blocks;
        stages.push_back(stage);
    }
    return stages;
}

struct Matrix {
    real row[K][K];
};

void set_identity(Matrix& m) {
    for (int i = 0; i < K; ++i)
        for (int j = 0; j < K; ++j) m.row[i][j] = i == j;
}

// Calls visit(2x2 block, its index, upper row, lower row) for each rotation of one round of a block.
template <typename Visit>
void each_rotation(const Stage& stage, int64_t block, int level, Visit visit) {
    const int nodes = K >> (level + 1), half = 1 << level;
    for (int node = 0; node < nodes; ++node) {
        const int64_t pair = block * nodes + node;
        if (pair < stage.pairs[level]) visit(4 * (stage.first[level] + pair), 2 * node * half, (2 * node + 1) * half);
    }
}

void multiply_round(const Stage& stage, int64_t block, int level, const real* rotations, Matrix& m) {
    each_rotation(stage, block, level, [&](int64_t at, int i, int j) {
        const real* p = rotations + at;
        const vec upper = load(m.row[i]), lower = load(m.row[j]);
        store(m.row[i], p[0] * upper + p[1] * lower);
        store(m.row[j], p[2] * upper + p[3] * lower);
    });
}

struct Tree {
    std::vector<Stage> stages;
    std::vector<Matrix> matrices, transposed;

    Tree(int64_t width, const real* rotations) : stages(stages_of(width)) {
        for (const Stage& stage : stages)
            for (int64_t b = 0; b < stage.blocks; ++b) {
                Matrix m;
                set_identity(m);
                for (int level = 0; level < LEVELS; ++level) multiply_round(stage, b, level, rotations, m);
                matrices.push_back(m);
                for (int i = 0; i < K; ++i)
                    for (int j = 0; j < i; ++j) std::swap(m.row[i][j], m.row[j][i]);
                transposed.push_back(m);
            }
    }

    int64_t numbers() const { return int64_t(matrices.size()) * K * K; }

    // Gradient of the rotations from that of the matrices.
    void backward(const real* rotations, const real* grad_matrices, real* grad_rotations) const {
        for (const Stage& stage : stages)
            for (int64_t b = 0; b < stage.blocks; ++b) {
                Matrix before[LEVELS], g;
                set_identity(before[0]);
                for (int level = 0; level + 1 < LEVELS; ++level) {
                    before[level + 1] = before[level];
                    multiply_round(stage, b, level, rotations, before[level + 1]);
                }
                std::memcpy(&g, grad_matrices + (stage.offset + b) * K * K, sizeof g);
                for (int level = LEVELS - 1; level >= 0; --level)
                    each_rotation(stage, b, level, [&](int64_t at, int i, int j) {
                        const real* p = rotations + at;
                        const vec upper = load(before[level].row[i]), lower = load(before[level].row[j]);
                        const vec gi = load(g.row[i]), gj = load(g.row[j]);
                        grad_rotations[at] = sum(gi * upper);
                        grad_rotations[at + 1] = sum(gi * lower);
                        grad_rotations[at + 2] = sum(gj * upper);
                        grad_rotations[at + 3] = sum(gj * lower);
                        store(g.row[i], p[0] * gi + p[2] * gj);
                        store(g.row[j], p[1] * gi + p[3] * gj);
                    });
            }
    }
};

// Some rows of numbers: row t starts at data + t * stride.
struct Input {
    const real* data;
    int64_t stride;

    const real* row(int64_t t) const { return data + t * stride; }
    Input from(int64_t column) const { return {data + column, stride}; }
};

struct Output {
    real* data;
    int64_t stride;

    real* row(int64_t t) const { return data + t * stride; }
    Output from(int64_t column) const { return {data + column, stride}; }
    operator Input() const { return {data, stride}; }
};

// out <- in M, where the first coordinate of in is taken from first.
void multiply(Input in, Input first, Output out, int64_t rows, const Matrix& m) {
    vec row[K];
#pragma GCC unroll 16
    for (int i = 0; i < K; ++i) row[i] = load(m.row[i]);
    for (int64_t t = 0; t < rows; ++t) {
        const real* x = in.row(t);
        vec even = *first.row(t) * row[0], odd = x[1] * row[1];
#pragma GCC unroll 8
        for (int i = 2; i < K; i += 2) {
            even += x[i] * row[i];
            odd += x[i + 1] * row[i + 1];
        }
        store(out.row(t), even + odd);
    }
}

// total[i][:] += sum over rows of a[i] b[:], where a[0] is taken from first.
void add_products(Input a, Input first, Input b, int64_t rows, real* total) {
    vec acc[K];
#pragma GCC unroll 16
    for (int i = 0; i < K; ++i) acc[i] = load(total + i * K);
    for (int64_t t = 0; t < rows; ++t) {
        const vec right = load(b.row(t));
        const real* left = a.row(t);
        acc[0] += *first.row(t) * right;
#pragma GCC unroll 16
        for (int i = 1; i < K; ++i) acc[i] += left[i] * right;
    }
#pragma GCC unroll 16
    for (int i = 0; i < K; ++i) store(total + i * K, acc[i]);
}

// Rows of their own, zero, as wide as whole blocks need.
struct Rows : Output {
    std::vector<real> numbers;

    Rows(int64_t rows, int64_t width) : Output{nullptr, (width + K - 1) / K * K}, numbers(rows * stride) {
        data = numbers.data();
    }
    Rows(Rows&&) = default;  // not to be copied: data points into numbers
};

// The walk along the stages of a tile of rows, each as wide as its whole blocks need.
struct Walk {
    const Tree& tree;
    int64_t rows;

    // The first coordinate of each block of a stage, which the next stage acts on.
    Rows gather(const Stage& stage, Input from) const {
        Rows coarse(rows, stage.blocks);
        for (int64_t t = 0; t < rows; ++t)
            for (int64_t b = 0; b < stage.blocks; ++b) coarse.row(t)[b] = from.row(t)[b * K];
        return coarse;
    }

    void scatter(const Stage& stage, Input coarse, Output to) const {
        for (int64_t t = 0; t < rows; ++t)
            for (int64_t b = 0; b < stage.blocks; ++b) to.row(t)[b * K] = coarse.row(t)[b];
    }

    // out <- in R, coarse before fine; out may be in.
    void rotate(size_t depth, Input in, Output out) const {
        const Stage& stage = tree.stages[depth];
        if (stage.blocks == 1) return multiply(in, in, out, rows, tree.matrices[stage.offset]);
        const Rows coarse = gather(stage, in);
        rotate(depth + 1, coarse, coarse);
        for (int64_t b = 0; b < stage.blocks; ++b)
            multiply(in.from(b * K), coarse.from(b), out.from(b * K), rows, tree.matrices[stage.offset + b]);
    }

    // out <- in R^T, fine before coarse; out may be in.
    void rotate_transposed(size_t depth, Input in, Output out) const {
        const Stage& stage = tree.stages[depth];
        for (int64_t b = 0; b < stage.blocks; ++b)
            multiply(in.from(b * K), in.from(b * K), out.from(b * K), rows, tree.transposed[stage.offset + b]);
        if (stage.blocks == 1) return;
        const Rows coarse = gather(stage, out);
        rotate_transposed(depth + 1, coarse, coarse);
        scatter(stage, coarse, out);
    }

    // Gradient of rotate: that of in takes the place of out's in grad, that of the matrices is added to total.
    void backward(size_t depth, Input in, Output grad, real* total) const {
        const Stage& stage = tree.stages[depth];
        const bool last = stage.blocks == 1;
        const Rows coarse = gather(stage, in), rotated(last ? 0 : rows, stage.blocks);
        if (!last) rotate(depth + 1, coarse, rotated);
        for (int64_t b = 0; b < stage.blocks; ++b) {
            const Output g = grad.from(b * K);
            add_products(in.from(b * K), last ? in : Input(rotated.from(b)), g, rows, total + (stage.offset + b) * K * K);
            multiply(g, g, g, rows, tree.transposed[stage.offset + b]);
        }
        if (last) return;
        const Rows coarse_grad = gather(stage, grad);
        backward(depth + 1, coarse, coarse_grad, total);
        scatter(stage, coarse_grad, grad);
    }

    // Gradient of rotate_transposed, likewise.
    void backward_transposed(size_t depth, Input in, Output grad, real* total) const {
        const Stage& stage = tree.stages[depth];
        const bool last = stage.blocks == 1;
        const Rows coarse_grad = gather(stage, grad);
        if (!last) {
            const Rows coarse(rows, stage.blocks);  // what the fine rounds make of each block's first coordinate
            for (int64_t b = 0; b < stage.blocks; ++b) {
                const vec first = load(tree.matrices[stage.offset + b].row[0]);
                for (int64_t t = 0; t < rows; ++t) coarse.row(t)[b] = sum(load(in.row(t) + b * K) * first);
            }
            backward_transposed(depth + 1, coarse, coarse_grad, total);
        }
        for (int64_t b = 0; b < stage.blocks; ++b) {
            const Output g = grad.from(b * K);
            add_products(g, coarse_grad.from(b), in.from(b * K), rows, total + (stage.offset + b) * K * K);
            multiply(g, coarse_grad.from(b), g, rows, tree.matrices[stage.offset + b]);
        }
    }
};

// Rows of a tile: as many as stay in a core's cache.
int64_t tile_rows(int64_t width) { return std::clamp<int64_t>(65536 / width, 4, 32); }

// A tile of a matrix (rows, width), in place where width is whole blocks, else in a padded copy.
struct Padded {
    real* data;
    int64_t rows, width;
    Rows copy;
    Output tile;

    Padded(real* data, int64_t rows, int64_t width)
        : data(data), rows(rows), width(width), copy(width % K ? rows : 0, width), tile{data, width} {
        if (width % K == 0) return;
        tile = copy;
        for (int64_t t = 0; t < rows; ++t) std::copy_n(data + t * width, width, tile.row(t));
    }

    void write_back() const {
        for (int64_t t = 0; width % K && t < rows; ++t) std::copy_n(tile.row(t), width, data + t * width);
    }
};

}  // namespace

extern "C" void rotate(
    const real* x, const real* rotations, real* y, int64_t rows, int64_t width, bool transpose, int64_t threads
) {
    const Tree tree(width, rotations);
    const int64_t step = tile_rows(width);
    parallel(rows, step, threads, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t at = first; at < last; at += step) {
            const int64_t count = std::min(step, last - at);
            const Padded in(const_cast<real*>(x) + at * width, count, width), out(y + at * width, count, width);
            const Walk walk{tree, count};
            transpose ? walk.rotate_transposed(0, in.tile, out.tile) : walk.rotate(0, in.tile, out.tile);
            out.write_back();
        }
    });
}

extern "C" void rotate_backward(
    const real* x, const real* rotations, real* grad, real* grad_rotations, int64_t rows, int64_t width,
    bool transpose, int64_t threads
) {
    const Tree tree(width, rotations);
    const int64_t step = tile_rows(width), numbers = tree.numbers();
    std::vector<real> parts(numbers * threads), total(numbers);
    parallel(rows, step, threads, [&](int64_t first, int64_t last, int64_t thread) {
        real* mine = parts.data() + thread * numbers;
        for (int64_t at = first; at < last; at += step) {
            const int64_t count = std::min(step, last - at);
            const Padded in(const_cast<real*>(x) + at * width, count, width), g(grad + at * width, count, width);
            const Walk walk{tree, count};
            transpose ? walk.backward_transposed(0, in.tile, g.tile, mine) : walk.backward(0, in.tile, g.tile, mine);
            g.write_back();
        }
    });
    reduce(parts, numbers, threads, total.data());
    tree.backward(rotations, total.data(), grad_rotations);
}

// ---- Approximately orthogonal projections --------------------------------------------------------------------------

namespace {

constexpr int GROUP = 4;  // rows whose contributions to a parameter's gradient are added in one pass over it

// The vector q (count) that makes AO(q), with its first number taken out so that loops can start at an aligned address.
struct Projection {
    std::vector<real> rest;      // q, but 0 in front
    real first, inverse, slope;  // q_0, 1 / (1 + q_0) and its derivative
    int64_t count, rank;

    // 1 + q_0 is held at least pole away from zero, with no gradient through it there.
    Projection(const real* q, int64_t count, int64_t rank, double pole)
        : rest(q, q + count), first(q[0]), count(count), rank(rank) {
        const real pivot = 1 + first;
        const bool guarded = std::abs(pivot) < real(pole);
        inverse = 1 / (guarded ? std::copysign(real(pole), pivot) : pivot);
        slope = guarded ? real(0) : -inverse * inverse;
        rest[0] = 0;
    }

    // z (rank) = x AO(q); returns sum_{i >= 1} x_i q_i.
    real project(const real* x, real* z) const {
        const real tail = dot(x, rest.data(), count), slope = x[0] + tail * inverse;
        for (int64_t j = 0; j < rank; ++j) z[j] = x[j] - rest[j] * slope;
        z[0] = x[0] * first + tail;
        return tail;
    }

    // y += z AO(q)^T
    void expand(const real* z, real* y) const {
        const real inner = dot(z, rest.data(), rank);
        axpy(z[0] - inner * inverse, rest.data(), y, count);
        axpy(real(1), z, y, rank);
        y[0] += z[0] * (first - 1) - inner;
    }
};

// Gathers d <x AO(q), z> / dq over rows, GROUP rows at a time.
struct VectorGradient {
    const Projection& q;
    real* total;  // (count); total[0] is kept in first until all rows are in
    real first = 0;
    const real* rows[GROUP];
    real weights[GROUP];
    int pending = 0;

    VectorGradient(const Projection& q, real* total) : q(q), total(total) {}

    void add(const real* x, const real* z, real tail) {
        const real inner = dot(z, q.rest.data(), q.rank);
        first += x[0] * z[0] - tail * inner * q.slope;
        axpy(-(x[0] + tail * q.inverse), z, total, q.rank);
        rows[pending] = x;
        weights[pending++] = z[0] - inner * q.inverse;
        if (pending == GROUP) flush();
    }

    void flush() {
        for (int g = pending; g < GROUP; ++g) rows[g] = rows[0], weights[g] = 0;
        int64_t i = 0;
        for (; pending && i + K <= q.count; i += K) {
            vec value = load(total + i);
            for (int g = 0; g < GROUP; ++g) value += weights[g] * load(rows[g] + i);
            store(total + i, value);
        }
        for (; pending && i < q.count; ++i)
            for (int g = 0; g < GROUP; ++g) total[i] += weights[g] * rows[g][i];
        pending = 0;
    }

    void finish() {
        flush();
        total[0] = first;
    }
};

}  // namespace

extern "C" void approx_orthogonal_add(
    real* y, const real* x, const real* down, const real* up, const real* scale, double pole, int64_t rows, int64_t in,
    int64_t out, int64_t rank, int64_t threads
) {
    const Projection from(down, in, rank, pole), to(up, out, rank, pole);
    parallel(rows, 1, threads, [&](int64_t first, int64_t last, int64_t) {
        std::vector<real> z(rank);
        for (int64_t t = first; t < last; ++t) {
            from.project(x + t * in, z.data());
            for (int64_t j = 0; j < rank; ++j) z[j] *= scale[j];
            to.expand(z.data(), y + t * out);
        }
    });
}

extern "C" void approx_orthogonal_backward(
    real* grad_x, const real* x, const real* grad, const real* down, const real* up, const real* scale,
    double pole, real* sums, int64_t rows, int64_t in, int64_t out, int64_t rank, int64_t threads
) {
    const Projection from(down, in, rank, pole), to(up, out, rank, pole);
    const int64_t numbers = in + out + rank;
    std::vector<real> parts(numbers * threads);
    parallel(rows, 1, threads, [&](int64_t first, int64_t last, int64_t thread) {
        std::vector<real> z(rank), grad_z(rank);
        real* mine = parts.data() + thread * numbers;
        VectorGradient grad_down(from, mine), grad_up(to, mine + in);
        real* grad_scale = mine + in + out;
        for (int64_t t = first; t < last; ++t) {
            const real *row = x + t * in, *grad_row = grad + t * out;
            const real tail = from.project(row, z.data()), grad_tail = to.project(grad_row, grad_z.data());
            for (int64_t j = 0; j < rank; ++j) {
                grad_scale[j] += z[j] * grad_z[j];
                z[j] *= scale[j];
                grad_z[j] *= scale[j];
            }
            if (grad_x) from.expand(grad_z.data(), grad_x + t * in);
            grad_down.add(row, grad_z.data(), tail);
            grad_up.add(grad_row, z.data(), grad_tail);
        }
        grad_down.finish();
        grad_up.finish();
    });
    reduce(parts, numbers, threads, sums);
}

// out = weight + the update, for rows [start, start + rows) of a weight (out, in) in torch's layout. With
// AO(q) = E + (q - e_0) e_0^T - p r^T (E the first columns of the identity, p_0 = 1 and p_i = q_i / (1 + q_0), r_0 = 0
// and r_j = q_j), the update multiplies out to four dense terms of rank one, and diag(scale).
extern "C" void approx_orthogonal_weight(
    real* out, const real* weight, const real* down, const real* up, const real* scale, double pole, int64_t start,
    int64_t rows, int64_t in, int64_t rank, int64_t threads
) {
    const Projection from(down, in, rank, pole), to(up, 1, 1, pole);
    std::vector<real> p(in), last(in), scaled(rank);
    for (int64_t i = 0; i < in; ++i) p[i] = i == 0 ? real(1) : from.inverse * down[i];
    for (int64_t j = 1; j < rank; ++j) scaled[j] = scale[j] * up[j];
    from.expand(scaled.data(), last.data());
    parallel(rows, 1, threads, [&](int64_t first, int64_t end, int64_t) {
        for (int64_t t = first; t < end; ++t) {
            const int64_t o = start + t;
            const real* w = weight + t * in;
            real* y = out + t * in;
            const real a = o >= 1 && o < rank ? -scale[o] * down[o] : real(0);
            const real b = scale[0] * (o == 0 ? up[0] - 1 : up[o]);
            const real c = o == 0 ? real(-1) : -to.inverse * up[o];
            int64_t i = 0;
            for (; i + K <= in; i += K)
                store(y + i, load(w + i) + a * load(&p[i]) + b * load(down + i) + c * load(&last[i]));
            for (; i < in; ++i) y[i] = w[i] + a * p[i] + b * down[i] + c * last[i];
            if (o == 0) {
                axpy(scale[0], down, y, in);
                y[0] -= scale[0];
            }
            if (o < rank) y[o] += scale[o];
        }
    });
}

// ---- Low-rank rescaling --------------------------------------------------------------------------------------------

// out = (base + right^T left) (.) weight for a weight (rows, in), with left (rank, in) and right (rank, rows).
extern "C" void rescale(
    real* out, const real* weight, const real* left, const real* right, double base, int64_t rows, int64_t in,
    int64_t rank, int64_t right_stride, int64_t threads
) {
    parallel(rows, 1, threads, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t o = first; o < last; ++o) {
            const real* w = weight + o * in;
            real* y = out + o * in;
            int64_t i = 0;
            for (; i + K <= in; i += K) {
                vec gain = vec{} + real(base);
                for (int64_t r = 0; r < rank; ++r) gain += right[r * right_stride + o] * load(left + r * in + i);
                store(y + i, gain * load(w + i));
            }
            for (; i < in; ++i) {
                real gain = real(base);
                for (int64_t r = 0; r < rank; ++r) gain += right[r * right_stride + o] * left[r * in + i];
                y[i] = gain * w[i];
            }
        }
    });
}

// With H = product (.) weight, (rows, in): grad_left (rank, in) += right H and grad_right (rank, rows) = left H^T.
extern "C" void rescale_backward(
    const real* product, const real* weight, const real* left, const real* right, real* grad_left, real* grad_right,
    int64_t rows, int64_t in, int64_t rank, int64_t right_stride, int64_t threads
) {
    const int64_t numbers = rank * in;
    std::vector<real> parts(numbers * threads), total(numbers);
    parallel(rows, 1, threads, [&](int64_t first, int64_t last, int64_t thread) {
        real* sums = parts.data() + thread * numbers;
        std::vector<real> h(in);
        for (int64_t o = first; o < last; ++o) {
            for (int64_t i = 0; i < in; ++i) h[i] = product[o * in + i] * weight[o * in + i];
            for (int64_t r = 0; r < rank; ++r) {
                grad_right[r * right_stride + o] = dot(h.data(), left + r * in, in);
                axpy(right[r * right_stride + o], h.data(), sums + r * in, in);
            }
        }
    });
    reduce(parts, numbers, threads, total.data());
    axpy(real(1), total.data(), grad_left, numbers);
}
