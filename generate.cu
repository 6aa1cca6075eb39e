/*
generate.c on an NVIDIA GPU: the same program over the CUDA backend. Build it with `make
generate_cuda`.
*/
#include "llmc/cuda/backend.cuh"
#define BACKEND_READY
#include "generate.c"
