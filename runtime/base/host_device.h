// Marks functions that are compiled for the host and, where CUDA code includes them, for the GPU.
#pragma once

#if defined(__CUDACC__)
#define EK_HOST_DEVICE __host__ __device__
#else
#define EK_HOST_DEVICE
#endif
