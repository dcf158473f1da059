// Small checkpoints whose contents say which save they come from, for the tests of the store.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/checkpoint_store.h"
#include "runtime/checkpoint/safetensors_file.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {

constexpr int64_t kSmallCount = 3000;

// Every file of the checkpoint depends on `attempt`.
inline CheckpointSave SmallSave(int64_t step, int attempt, int keep_last,
                                int64_t count = kSmallCount) {
  CheckpointSave save;
  save.step = step;
  save.state_json = absl::StrCat("{\"attempt\":", attempt, ",\"seed\":18446744073709551615}");
  save.keep_last = keep_last;
  save.write = [step, attempt, count](CheckpointFiles& files) -> absl::Status {
    const std::vector<float> values(static_cast<size_t>(count),
                                    static_cast<float>(1000 * attempt + step));
    const std::vector<SafetensorsTensor> tensors = {
        {"weight", {values.data(), DType::kF32, {count}}, StoredType::kF32}};
    EK_RETURN_IF_ERROR(files.AddSafetensors("model.safetensors", tensors));
    EK_RETURN_IF_ERROR(files.AddText("config.json", absl::StrCat("{\"attempt\":", attempt, "}")));
    // As other ranks write theirs: once declared, once left to be found.
    for (int rank = 0; rank < 2; ++rank) {
      const std::string name = absl::StrCat("optimizer-", rank, ".safetensors");
      const std::vector<double> moments(100, attempt + rank);
      const std::vector<SafetensorsTensor> shard = {
          {"moment", {moments.data(), DType::kF64, {100}}, StoredType::kF64}};
      EK_ASSIGN_OR_RETURN(const FileDigest digest,
                          WriteSafetensors(absl::StrCat(files.folder(), "/", name), shard));
      if (rank == 0) EK_RETURN_IF_ERROR(files.AddWritten(name, digest));
    }
    return absl::OkStatus();
  };
  return save;
}

// Checks that `opened` is what SmallSave(step, attempt) wrote, all of it.
inline void ExpectSmallCheckpoint(const OpenedCheckpoint& opened, int64_t step, int attempt,
                                  int64_t count = kSmallCount) {
  EXPECT_EQ(opened.step, step);
  EXPECT_EQ(opened.state_json,
            absl::StrCat("{\"attempt\":", attempt, ",\"seed\":18446744073709551615}"));
  EXPECT_EQ(opened.files.size(), 4u);
  EXPECT_EQ(ReadBytes(opened.folder + "/config.json"), absl::StrCat("{\"attempt\":", attempt, "}"));
  const absl::StatusOr<SafetensorsReader> model =
      SafetensorsReader::Open(opened.folder + "/model.safetensors");
  ASSERT_TRUE(model.ok()) << model.status();
  std::vector<float> values(static_cast<size_t>(count));
  ASSERT_TRUE(model->ReadTensor("weight", {values.data(), DType::kF32, {count}}).ok());
  EXPECT_EQ(values.front(), static_cast<float>(1000 * attempt + step));
  EXPECT_EQ(values.back(), static_cast<float>(1000 * attempt + step));
}

// Names with ".tmp-" in a folder of checkpoints.
inline int CountTemporaries(const std::string& folder) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().find(".tmp-") != std::string::npos) ++count;
  }
  return count;
}

}  // namespace evenkeel
