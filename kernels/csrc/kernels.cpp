// The kernels, compiled once per instruction set: PTMST_SET is its name, PTMST_NAME its name for users.
#include "kernels.hpp"

#include "contrast.hpp"
#include "flat.hpp"

namespace ptmst {

const Kernels PTMST_SET = {
    PTMST_NAME,
    flat::point,
    flat::match_shortcut,
    flat::match_vectors,
    flat::descend,
    flat::sgd_ema,
    contrast::pairwise,
    contrast::softmax_stats_row,
    contrast::softmax_stats_columns,
    contrast::softmax_gradient,
};

}  // namespace ptmst
