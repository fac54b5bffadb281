// Runs kernels on the host, one thread after the other. Standard input holds calls: a `Call`, then the kernel's
// arguments in order, each as int64 size, int64 given and `given` bytes. An argument has `size` bytes, of which
// the last `given` are sent and the rest is zero: buffers may be too large to be filled. Standard output gets
// the last `given` bytes of every buffer that the kernel may write to.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <tuple>
#include <type_traits>

#include "kernels.cu"

struct Call {
    char kernel[32];
    uint32_t blocks, threads, first_block;
};

static void check(bool good, const char* what) {
    if (good) return;
    fprintf(stderr, "driver: %s\n", what);
    exit(2);
}

static void take(void* to, size_t size) {
    check(fread(to, 1, size, stdin) == size, "the input ends within a call");
}

struct Sizes {
    int64_t size, given;
    Sizes() { take(this, sizeof *this); }
};

template <typename T> struct Argument {  // a scalar
    Sizes sizes;
    T value;
    Argument() {
        check(sizes.size == sizeof(T) && sizes.given == sizeof(T), "a scalar of another size");
        take(&value, sizeof(T));
    }
    void give() {}
};

template <typename T> struct Argument<T*> {  // a buffer of its exact size: the sanitizer sees its ends
    Sizes sizes;
    T* value;
    Argument() : value(static_cast<T*>(whole() ? malloc(sizes.size) : map())) { take(tail(), sizes.given); }
    bool whole() const { return sizes.given == sizes.size; }
    char* tail() const { return (char*)value + (sizes.size - sizes.given); }
    void* map() const {  // pages that nobody touches take no memory
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, sizes.size, PROT_READ | PROT_WRITE, flags, -1, 0);
        check(memory != MAP_FAILED, "no address space");
        return memory;
    }
    void give() {
        if (!std::is_const<T>::value) fwrite(tail(), 1, sizes.given, stdout);
        whole() ? free((void*)value) : (void)munmap((void*)value, sizes.size);
    }
};

template <typename... A> static void run(void (*kernel)(A...), const Call& call) {
    std::tuple<Argument<A>...> arguments{Argument<A>()...};  // braces: read from left to right
    auto thread = [&](auto&... argument) { kernel(argument.value...); };
    gridDim.x = call.blocks;
    blockDim.x = call.threads;
    for (blockIdx.x = call.first_block; blockIdx.x < gridDim.x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) std::apply(thread, arguments);
    std::apply([](auto&... argument) { (argument.give(), ...); }, arguments);
    fflush(stdout);
}

static void dispatch(const Call& call) {
#define KERNEL(name) \
    if (strcmp(call.kernel, #name) == 0) return run(name, call);
    KERNEL(gather)
    KERNEL(gather_conditions)
    KERNEL(gather_conditions_narrow)
    KERNEL(timesteps)
    KERNEL(time_ids)
    KERNEL(blend_step)
    KERNEL(decoder_input)
    KERNEL(to_pictures)
    KERNEL(to_pictures_narrow)
    check(false, "no such kernel");
}

int main() {
    for (Call call; fread(&call, sizeof call, 1, stdin) == 1;) dispatch(call);
}
