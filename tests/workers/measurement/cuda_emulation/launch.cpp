// Follows the kernels' source: looks a kernel up by its name and runs it.

extern "C" int emulate(const char *name, void **values, unsigned grid_x, unsigned grid_y, unsigned block)
{
#define KERNEL(function)                                                                                               \
    if (!std::strcmp(name, #function))                                                                                 \
        return launch(function, values, grid_x, grid_y, block) ? 0 : 1;
    KERNEL(pivots)
    KERNEL(reduce_range)
    KERNEL(join_ranges)
    KERNEL(count_bins)
    KERNEL(collect_bin)
    KERNEL(token_limits)
    KERNEL(count_reaching)
    KERNEL(note_hits)
    KERNEL(channel_products)
    return 2;
}
