#ifndef CM_CUDA_LINALG_CUH
#define CM_CUDA_LINALG_CUH
#endif
