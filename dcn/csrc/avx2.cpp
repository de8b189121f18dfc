#define DCN_ISA avx2
#define DCN_VECTOR_BYTES 32
#include "kernels.h"
