// The arithmetic around the engines, fused: what runtime/denoise/loop.py and kernels.py there do with numpy.
//
// REAL is the element of the engines' tensors, __half or float; it is defined when this file is compiled.
// Latents stay float32. All of this is bound by memory: every value is read once and written once, several
// at a time. A frame of latents has 4 channels and so is a whole number of packs of 4, each of them
// aligned, whatever its height and width are: nothing is left over. Poses and pictures have no such
// property; their *_narrow kernels take the sizes that are no multiple of the pack.
//
// Latents, poses, guidance, pictures and tokens of several jobs of equal shape lie one behind the other; a row is
// of one job, and each job has its own numbers. These and the guidance are read from device memory, so that a
// captured graph is replayed for each sigma. Compiled without fused multiply-add, sums equal numpy's to the last bit. Every pointer is
// aligned to 16 bytes. runtime/cuda/launches.py makes the tables, the grids and the scalars.

#include <cuda_fp16.h>

using Real = REAL;
using Index = long long;  // a batch may hold more than 2^31 elements

constexpr int WIDE = 16 / sizeof(Real);  // elements in the largest load

struct alignas(16) Step {
    float timestep, scale, keep, push;  // denoise/schedule.Step
};

// One row's prediction for one frame, and its weight in the fusion; launches.COVER.
struct Cover {
    int prediction;  // row * segment_frames + index in the segment
    int conditional;
    float weight;
};

template <typename T, int N> struct alignas(N * sizeof(T)) Pack {
    T at[N];
};

template <int N, typename T> __device__ Pack<T, N> load(const T* from, Index pack) {
    return reinterpret_cast<const Pack<T, N>*>(from)[pack];
}

template <typename T, int N> __device__ void store(T* to, Index pack, const Pack<T, N>& values) {
    reinterpret_cast<Pack<T, N>*>(to)[pack] = values;
}

__device__ Pack<Real, 4> to_real(const Pack<float, 4>& values) {
    Pack<Real, 4> out;
    for (int i = 0; i < 4; ++i) out.at[i] = Real(values.at[i]);
    return out;
}

// Neither NaN nor infinite.
__device__ bool is_finite(float value) { return value - value == 0.0f; }

// Which pack of which item this thread takes; each item has whole blocks to itself.
struct Place {
    Index item;
    unsigned pack;
};

__device__ Place place(unsigned packs) {
    unsigned blocks = (packs - 1) / blockDim.x + 1;
    return {blockIdx.x / blocks, blockIdx.x % blocks * blockDim.x + threadIdx.x};
}

// out [rows,segment_frames,8,h,w]: scaled latents of each row's frames, then the latents of its job's picture or, in rows
// that are not conditional, zeros.
extern "C" __global__ void gather(const float* latents, const float* images, const int* frames,
                                  const int* conditional, const int* jobs, const Step* steps, Real* out, int segment_frames,
                                  unsigned pixels) {
    Place p = place(pixels);
    if (p.pack >= pixels) return;
    int row = int(p.item / segment_frames), job = jobs[row];
    float scale = steps[job].scale;
    Pack<float, 4> noisy = load<4>(latents, Index(frames[p.item]) * pixels + p.pack);
    Pack<float, 4> picture = {};
    if (conditional[row]) picture = load<4>(images, Index(job) * pixels + p.pack);
    for (float& value : noisy.at) value *= scale;
    store(out, 2 * p.item * pixels + p.pack, to_real(noisy));
    store(out, (2 * p.item + 1) * pixels + p.pack, to_real(picture));
}

template <int N>
__device__ void condition(const Real* source, const int* frames, const int* conditional, Real* out, int segment_frames,
                          unsigned packs) {
    Place p = place(packs);
    if (p.pack >= packs) return;
    Pack<Real, N> values = {};
    if (conditional[p.item / segment_frames]) values = load<N>(source, Index(frames[p.item]) * packs + p.pack);
    store(out, p.item * packs + p.pack, values);
}

// out [rows,segment_frames,...]: each row's frames of source [F,...], or zeros in rows that are not conditional.
extern "C" __global__ void gather_conditions(const Real* source, const int* frames, const int* conditional,
                                             Real* out, int segment_frames, unsigned packs) {
    condition<WIDE>(source, frames, conditional, out, segment_frames, packs);
}

extern "C" __global__ void gather_conditions_narrow(const Real* source, const int* frames,
                                                    const int* conditional, Real* out, int segment_frames, unsigned packs) {
    condition<1>(source, frames, conditional, out, segment_frames, packs);
}

// out [rows]: the timestep of each row's job, which engines take in float32 whatever their other tensors are.
extern "C" __global__ void timesteps(const int* jobs, const Step* steps, float* out, unsigned rows) {
    unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) out[row] = steps[jobs[row]].timestep;
}

// out [rows,3]: what SVD is told of each row's job, from ids [jobs,3]; in float32 like the timestep.
extern "C" __global__ void time_ids(const float* ids, const int* jobs, float* out, unsigned rows) {
    unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    for (int i = 0; i < 3; ++i) out[3 * row + i] = ids[3 * jobs[row] + i];
}

// latents [jobs*F,4,h,w] <- keep latents + push sum_rows weight part prediction [rows,segment_frames,4,h,w], where part is
// guidance [jobs*F] in conditional rows and 1 - guidance in the others. Frame f's rows are
// covers[first[f]:first[f+1]], summed in that order: the same bits every time. A job that stands still has keep 1
// and no rows. `frames` is F. A job whose latents are no longer finite gets 1 in broken [jobs].
extern "C" __global__ void blend_step(const Real* predictions, const int* first, const Cover* covers,
                                      const float* guidance, const Step* steps, int* broken, float* latents,
                                      unsigned pixels, unsigned frames) {
    Place p = place(pixels);
    if (p.pack >= pixels) return;
    Step numbers = steps[p.item / frames];
    float guide = guidance[p.item];
    Pack<float, 4> x = load<4>(latents, p.item * pixels + p.pack);
    for (float& value : x.at) value *= numbers.keep;
    int end = first[p.item + 1];
    for (int c = first[p.item]; c < end; ++c) {
        Cover cover = covers[c];
        float share = cover.weight * (cover.conditional ? guide : 1.0f - guide) * numbers.push;
        Pack<Real, 4> v = load<4>(predictions, Index(cover.prediction) * pixels + p.pack);
        for (int i = 0; i < 4; ++i) x.at[i] += share * float(v.at[i]);
    }
    bool finite = true;
    for (float value : x.at) finite = finite && is_finite(value);
    if (!finite) broken[p.item / frames] = 1;
    store(latents, p.item * pixels + p.pack, x);
}

// out [F,4,h,w] <- latents / divisor: the VAE decoder's input.
extern "C" __global__ void decoder_input(const float* latents, Real* out, float divisor, unsigned pixels) {
    Place p = place(pixels);
    if (p.pack >= pixels) return;
    Pack<float, 4> values = load<4>(latents, p.item * pixels + p.pack);
    for (float& value : values.at) value /= divisor;
    store(out, p.item * pixels + p.pack, to_real(values));
}

// [-1,1] scaled to 255 and truncated, in float32 whatever the planes are; NaN gives 0.
__device__ unsigned char to_byte(Real value) {
    return static_cast<unsigned char>(fminf(fmaxf(float(value) * 0.5f + 0.5f, 0.0f), 1.0f) * 255.0f);
}

template <int N> __device__ void interleave(const Real* planes, int* broken, unsigned char* out, unsigned packs) {
    Place p = place(packs);
    if (p.pack >= packs) return;
    Pack<unsigned char, N> bytes[3];
    bool finite = true;
    for (int channel = 0; channel < 3; ++channel) {
        Pack<Real, N> values = load<N>(planes, (3 * p.item + channel) * packs + p.pack);
        for (int i = 0; i < N; ++i) {
            int position = 3 * i + channel;
            bytes[position / N].at[position % N] = to_byte(values.at[i]);
            finite = finite && is_finite(float(values.at[i]));
        }
    }
    if (!finite) *broken = 1;
    for (int k = 0; k < 3; ++k) store(out, 3 * (p.item * packs + p.pack) + k, bytes[k]);
}

// out [n,H,W,3] <- planes [n,3,H,W]. broken [1] gets 1 if a value of them is not finite.
extern "C" __global__ void to_pictures(const Real* planes, int* broken, unsigned char* out, unsigned packs) {
    interleave<WIDE>(planes, broken, out, packs);
}

extern "C" __global__ void to_pictures_narrow(const Real* planes, int* broken, unsigned char* out, unsigned packs) {
    interleave<1>(planes, broken, out, packs);
}
