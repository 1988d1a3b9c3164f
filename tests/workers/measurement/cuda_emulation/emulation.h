// Runs CUDA kernels on the host, one thread of a block after the other: what they compute, not how fast.
//
// Every thread of a block is a coroutine, which runs until it meets a barrier. Blocks follow one another, so a shared
// array can be a static one. A warp's reduction is a barrier of 32 threads around a table of their values.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __device__ static
#define __global__
#define __shared__ static

struct Place {
    unsigned x, y, z;
};

static Place blockIdx, threadIdx, gridDim;

using std::max;
using std::min;

static inline float __uint_as_float(unsigned bits)
{
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned __float_as_uint(float value)
{
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline int __popc(unsigned bits)
{
    return __builtin_popcount(bits);
}

template <class T> T atomicAdd(T *at, T value)
{
    T before = *at;
    *at += value;
    return before;
}

template <class T> T atomicMax(T *at, T value)
{
    T before = *at;
    *at = std::max(before, value);
    return before;
}

template <class T> T atomicOr(T *at, T value)
{
    T before = *at;
    *at |= value;
    return before;
}

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
    int group;  // of the barrier it waits at: -1 for none, 0 the block, 1 + warp a warp
};

static std::vector<Thread> threads;
static ucontext_t scheduler;
static int running;
static int lanes[1024];

static void wait_at(int group)
{
    threads[running].group = group;
    swapcontext(&threads[running].context, &scheduler);
}

static void __syncthreads()
{
    wait_at(0);
}

static int __reduce_max_sync(unsigned, int value)
{
    lanes[running] = value;
    wait_at(1 + running / 32);
    int first = running / 32 * 32, largest = lanes[first];
    for (int k = first; k < std::min<int>(first + 32, threads.size()); k++)
        largest = std::max(largest, lanes[k]);
    wait_at(1 + running / 32);  // before anybody writes its next value
    return largest;
}

static unsigned __ballot_sync(unsigned, bool value)
{
    lanes[running] = value;
    wait_at(1 + running / 32);
    int first = running / 32 * 32;
    unsigned ballot = 0;
    for (int k = first; k < std::min<int>(first + 32, threads.size()); k++)
        ballot |= (unsigned)lanes[k] << (k - first);
    wait_at(1 + running / 32);
    return ballot;
}

// Let the threads of a barrier go on if all that are left of its group have come to it.
static bool release(int group)
{
    int first = group ? (group - 1) * 32 : 0, last = group ? std::min<int>(first + 32, threads.size()) : threads.size();
    for (int k = first; k < last; k++)
        if (!threads[k].done && threads[k].group != group)
            return false;
    for (int k = first; k < last; k++)
        if (!threads[k].done)
            threads[k].group = -1;
    return true;
}

template <class... Arguments> struct Kernel {
    static void (*function)(Arguments...);
    static void **values;

    template <std::size_t... I> static void call(std::index_sequence<I...>)
    {
        function(*static_cast<std::decay_t<Arguments> *>(values[I])...);
    }

    static void run_thread()
    {
        call(std::index_sequence_for<Arguments...>{});
        threads[running].done = true;
    }

    // Return false where threads of a block wait at different barriers for ever.
    static bool run(void (*f)(Arguments...), void **v, unsigned grid_x, unsigned grid_y, unsigned block)
    {
        function = f;
        values = v;
        gridDim = {grid_x, grid_y, 1};
        for (unsigned y = 0; y < grid_y; y++)
            for (unsigned x = 0; x < grid_x; x++) {
                blockIdx = {x, y, 0};
                threads.resize(block);
                for (auto &thread : threads) {
                    getcontext(&thread.context);
                    thread.stack.resize(1 << 16);
                    thread.context.uc_stack.ss_sp = thread.stack.data();
                    thread.context.uc_stack.ss_size = thread.stack.size();
                    thread.context.uc_link = &scheduler;
                    makecontext(&thread.context, run_thread, 0);
                    thread.done = false;
                    thread.group = -1;
                }
                for (bool all_done = false; !all_done;) {
                    bool moved = false;
                    all_done = true;
                    for (running = 0; running < (int)block; running++) {
                        Thread &thread = threads[running];
                        if (thread.done)
                            continue;
                        all_done = false;
                        if (thread.group >= 0 && !release(thread.group))
                            continue;
                        moved = true;
                        threadIdx = {(unsigned)running, 0, 0};
                        swapcontext(&scheduler, &thread.context);
                    }
                    if (!moved && !all_done)
                        return false;
                }
            }
        return true;
    }
};

template <class... Arguments> void (*Kernel<Arguments...>::function)(Arguments...);
template <class... Arguments> void **Kernel<Arguments...>::values;

template <class... Arguments>
bool launch(void (*function)(Arguments...), void **values, unsigned grid_x, unsigned grid_y, unsigned block)
{
    return Kernel<Arguments...>::run(function, values, grid_x, grid_y, block);
}
