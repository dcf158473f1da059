#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "launch/enum_option.h"
#include "launch/model_folder.h"
#include "launch/output_file.h"
#include "launch/rank_runtime.h"
#include "models/hugging_face.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/checkpoint_store.h"
#include "runtime/checkpoint/file_io.h"
#include "runtime/metrics/text_table.h"

namespace evenkeel {
namespace {

absl::Status List(const std::string& run_folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(run_folder + "/checkpoints", error)) {
    return CheckpointError(absl::StatusCode::kNotFound,
                           absl::StrCat(run_folder, ": no run folder: it has no checkpoints/"));
  }
  EK_ASSIGN_OR_RETURN(
      const CheckpointStore store,
      CheckpointStore::Open(run_folder + "/checkpoints", CheckpointAccess::kReadOnly));
  EK_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, store.Steps());
  TextTable table({{"step"}, {"size"}, {"state", TextColumn::Align::kLeft}});
  absl::Status damage;
  for (int64_t step : steps) {
    const auto checkpoint = store.Load(step, CheckpointVerify::kHashes);
    if (!checkpoint.ok()) {
      damage.Update(checkpoint.status());
      table.AddRow({absl::StrCat(step), "", std::string(checkpoint.status().message())});
      continue;
    }
    int64_t bytes = 0;
    for (const auto& [name, digest] : checkpoint->files) bytes += digest.bytes;
    table.AddRow({absl::StrCat(step), FormatBytes(bytes), "good: " + checkpoint->folder});
  }
  std::cout << table.Render();
  return damage;
}

absl::Status Export(const std::string& model_path, const std::string& output, StoredType type) {
  RankOptions options;
  options.dtype = type == StoredType::kF64 ? DType::kF64 : DType::kF32;
  options.many_ranks = false;
  return RunOnRank(options, [&](const RankRuntime& rank) -> absl::Status {
    EK_ASSIGN_OR_RETURN(const std::string folder, FindModelFolder(model_path));
    EK_RETURN_IF_ERROR(PrepareOutputFolder(output));
    EK_ASSIGN_OR_RETURN(Model model, LoadModel(rank.context, folder, rank.tracker));
    EK_RETURN_IF_ERROR(WriteHuggingFaceFolder(output, model, model.weights().view(), type));
    std::cout << output << ": config.json and model.safetensors\n";
    return absl::OkStatus();
  });
}

}  // namespace

void AddCheckpointCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand("checkpoint", "List, check and export checkpoints");
  command->require_subcommand(1);

  CLI::App* list = command->add_subcommand("list", "List a run's checkpoints, every hash checked");
  auto run_folder = std::make_shared<std::string>();
  list->add_option("run", *run_folder, "Run folder")->required();
  list->footer("Examples:\n  evenkeel checkpoint list runs/quickstart");
  list->callback([=] { *body = [=] { return List(*run_folder); }; });

  CLI::App* exported =
      command->add_subcommand("export", "Write the weights as a Hugging Face folder");
  auto model = std::make_shared<std::string>();
  auto output = std::make_shared<std::string>();
  auto type = std::make_shared<StoredType>(StoredType::kF32);
  exported->add_option("model", *model, "Run folder, checkpoint or Hugging Face folder")
      ->required();
  exported->add_option("output", *output, "Folder to write")->required();
  AddEnumOption<StoredType>(*exported, "--dtype", type.get(), "Of the weights written",
                            {{"float32", StoredType::kF32},
                             {"bfloat16", StoredType::kBF16},
                             {"float16", StoredType::kF16},
                             {"float64", StoredType::kF64}});
  exported->footer(
      "Examples:\n  evenkeel checkpoint export runs/my_llama out/my_llama --dtype bfloat16");
  exported->callback([=] { *body = [=] { return Export(*model, *output, *type); }; });
}

}  // namespace evenkeel
