# Libraries whose Debian packages bring no CMake package of their own.
find_path(EK_OPENBLAS_INCLUDE NAMES cblas.h
  PATH_SUFFIXES openblas openblas-pthread x86_64-linux-gnu/openblas-pthread REQUIRED)
find_library(EK_OPENBLAS_LIBRARY NAMES openblas REQUIRED)
add_library(ek_openblas INTERFACE)
target_include_directories(ek_openblas SYSTEM INTERFACE ${EK_OPENBLAS_INCLUDE})
target_link_libraries(ek_openblas INTERFACE ${EK_OPENBLAS_LIBRARY})

find_path(EK_XXHASH_INCLUDE NAMES xxhash.h REQUIRED)
find_library(EK_XXHASH_LIBRARY NAMES xxhash REQUIRED)
add_library(ek_xxhash INTERFACE)
target_include_directories(ek_xxhash SYSTEM INTERFACE ${EK_XXHASH_INCLUDE})
target_link_libraries(ek_xxhash INTERFACE ${EK_XXHASH_LIBRARY})

if(EK_ENABLE_CUDA)
  # NCCL comes with CUDA, or as a package of its own.
  find_path(EK_NCCL_INCLUDE NAMES nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
  find_library(EK_NCCL_LIBRARY NAMES nccl HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
  add_library(ek_nccl INTERFACE)
  target_include_directories(ek_nccl SYSTEM INTERFACE ${EK_NCCL_INCLUDE} ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(ek_nccl INTERFACE ${EK_NCCL_LIBRARY})
endif()
