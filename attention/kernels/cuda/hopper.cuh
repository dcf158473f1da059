// Hopper's own instructions (sm_90a): barriers in shared memory that count bytes, clusters of
// blocks and the bulk tensor copy engine. Its products are in warpgroup_products.cuh.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EK_HAS_SM90A 1
#endif

namespace evenkeel {

// A kernel launched early begins when all blocks of the one before it in the stream have said that
// it may, and waits for what they write where it needs it: for all of the earlier grid, which has
// waited for those before it. Both do nothing in kernels launched as usual.
__device__ __forceinline__ void LetDependentsStart() {
#if defined(EK_HAS_SM90A)
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void WaitForEarlierGrids() {
#if defined(EK_HAS_SM90A)
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

struct LaunchOptions {
  bool early = false;
  int cluster = 1;  // blocks of a cluster
};

template <typename... Arguments>
cudaError_t LaunchKernel(void (*kernel)(Arguments...), dim3 grid, int threads, int shared_bytes,
                         const LaunchOptions& options, cudaStream_t stream,
                         const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (options.early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (options.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(options.cluster);
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#if defined(EK_HAS_SM90A)

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void ArriveExpectingBytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of this parity has completed.
__device__ __forceinline__ void WaitBarrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nwait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni finished;\nbra.uni wait;\nfinished:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Starts copying the box at (column, head, row) of a [rows, heads, columns] tensor. kReadOnce: the
// L2 cache may give it up before other data.
template <bool kReadOnce = false>
__device__ __forceinline__ void CopyBox(uint32_t shared, const CUtensorMap* map, uint32_t barrier,
                                        int column, int head, int row) {
  if constexpr (kReadOnce) {
    constexpr uint64_t kEvictFirst = 0x12f0000000000000;  // what createpolicy makes of evict_first
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared),
        "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row), "l"(kEvictFirst)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared),
        "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row)
        : "memory");
  }
}

// The place of this block in its cluster.
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Waits until all threads of the cluster's blocks are here.
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// Where another block of the cluster has what this one has at `shared`.
__device__ __forceinline__ uint32_t AddressInPeer(uint32_t shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}

// barrier: AddressInPeer. Orders nothing but what the tensor cores and the copy engine read before.
__device__ __forceinline__ void ArriveAtPeer(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Writes a word to another block; its barrier counts 4 bytes. Both: AddressInPeer.
__device__ __forceinline__ void SendWord(uint32_t address, uint32_t word, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
          address),
      "r"(word), "r"(barrier)
      : "memory");
}

// As CopyBox, to the same place in both blocks of a cluster of two; the barrier of each counts the
// bytes.
__device__ __forceinline__ void CopyBoxToBoth(uint32_t shared, const CUtensorMap* map,
                                              uint32_t barrier, int column, int head, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row), "h"(static_cast<uint16_t>(3))
      : "memory");
}

// Starts copying a tile of kRows x kCols; the barrier expects its bytes and `more`. What lies past
// the tensor's edges arrives as zeros and counts as bytes.
template <int kRows, int kCols, bool kReadOnce = false>
__device__ __forceinline__ void CopyTile(uint32_t shared, const CUtensorMap* map, uint32_t barrier,
                                         int head, int row, int more = 0) {
  ArriveExpectingBytes(barrier, kRows * kCols * 2 + more);
#pragma unroll
  for (int panel = 0; panel < kCols / 64; ++panel) {
    CopyBox<kReadOnce>(shared + panel * kRows * 128, map, barrier, panel * 64, head, row);
  }
}

// Starts copying contiguous bytes, a multiple of 16.
__device__ __forceinline__ void CopyBytes(uint32_t shared, const void* global, int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// Start writing, or adding, contiguous float32 from shared memory, a multiple of 16 bytes. One
// thread starts, commits and waits for its own transfers.
__device__ __forceinline__ void StoreBytes(void* global, uint32_t shared, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void AddFloats(float* global, uint32_t shared, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
      "r"(shared), "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void CommitTransfers() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until shared memory has been read.
__device__ __forceinline__ void WaitTransfersRead() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Until global memory has been written.
__device__ __forceinline__ void WaitTransfersDone() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Makes ordinary writes to shared memory visible to the copy engine and the warpgroup products.
__device__ __forceinline__ void FenceSharedForAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Place in a ring of stages, and the parity of its current phase.
template <int kStages = 2>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance() {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    parity ^= stage == 0;
  }
  __device__ __forceinline__ int StageBefore() const {
    return stage == 0 ? kStages - 1 : stage - 1;
  }
};

// The place in a ring of kStages that is advanced together with one of two, without registers of
// its own: a single stage changes its phase where the ring of two changes its stage.
template <int kStages>
__device__ __forceinline__ RingPlace<kStages> InStepWith(const RingPlace<2>& place) {
  if constexpr (kStages == 2) {
    return place;
  } else {
    return {0, static_cast<uint32_t>(place.stage)};
  }
}

// Stores four 8 x 8 matrices as they lie in accumulators, rounded; lane l gives the address of row
// l % 8 of matrix l / 8.
__device__ __forceinline__ void StoreMatrices(uint32_t address, uint32_t r0, uint32_t r1,
                                              uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(r0), "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

// Zeroes rows [first, kRows) of a tile of kCols columns; `thread` of kThreads.
template <int kRows, int kCols, int kThreads>
__device__ __forceinline__ void ZeroRows(uint32_t tile, int first, int thread) {
  const int chunks = (kRows - first) * 8;  // of a panel
  for (int i = thread; i < chunks * (kCols / 64); i += kThreads) {
    const uint32_t at = tile + i / chunks * (kRows * 128) + first * 128 + i % chunks * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
