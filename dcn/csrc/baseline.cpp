#define DCN_ISA baseline
#define DCN_VECTOR_BYTES 16
#include "kernels.h"
