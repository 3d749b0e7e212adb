// The kernels, compiled once per instruction set: PTMST_SET is its name, PTMST_NAME what users read.
#include "kernels.hpp"

#include "contrast.hpp"
#include "flat.hpp"

namespace ptmst {

const Kernels PTMST_SET = {
    PTMST_NAME,     flat::point,        flat::match_shortcut, flat::match_vectors, flat::descend,
    flat::sgd_ema,  contrast::pairwise, contrast::row_numbers, contrast::column_numbers, contrast::softmax,
};

}  // namespace ptmst
