#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "launch/output_file.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/file_io.h"
#include "runtime/data/dataset_build.h"
#include "runtime/data/dataset_info.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/length_statistics.h"
#include "runtime/metrics/human_format.h"
#include "runtime/metrics/text_table.h"

namespace evenkeel {
namespace {

absl::Status Build(const DatasetBuildOptions& options) {
  EK_RETURN_IF_ERROR(MakeFolders(ParentFolder(options.output_prefix)));
  std::function<void(const DatasetBuildProgress&)> show;
  if (isatty(STDERR_FILENO) == 1) {
    show = [](const DatasetBuildProgress& progress) {
      std::fprintf(stderr, "\r%s documents, %s tokens",
                   FormatCount(static_cast<double>(progress.num_documents)).c_str(),
                   FormatCount(static_cast<double>(progress.num_tokens)).c_str());
    };
  }
  EK_ASSIGN_OR_RETURN(const DatasetBuildSummary summary, BuildDataset(options, show));
  if (show) std::fprintf(stderr, "\n");
  TextTable table({{"data set", TextColumn::Align::kLeft}, {"documents"}, {"tokens"}});
  const auto add = [&](const std::string& name, int64_t documents, int64_t tokens) {
    if (documents > 0) table.AddRow({name, absl::StrCat(documents), absl::StrCat(tokens)});
  };
  add(options.output_prefix, summary.train_documents, summary.train_tokens);
  add(ValidationPrefix(options.output_prefix), summary.valid_documents, summary.valid_tokens);
  std::cout << table.Render();
  const auto tell = [](int64_t count, const char* what) {
    if (count > 0) std::cout << count << " documents " << what << "\n";
  };
  tell(summary.empty_documents, "were empty");
  tell(summary.bad_documents, "could not be read and were skipped");
  tell(summary.short_documents, "were shorter than --min-tokens");
  tell(summary.long_documents, "were longer than --max-tokens");
  return absl::OkStatus();
}

absl::Status Stat(const std::string& prefix, bool check) {
  EK_ASSIGN_OR_RETURN(const IndexedDataset dataset, IndexedDataset::Open(prefix));
  const auto info = ReadDatasetInfo(prefix);
  if (!info.ok() && !absl::IsNotFound(info.status())) return info.status();
  if (info.ok()) {
    std::cout << prefix << ": tokenizer " << info->tokenizer << ", vocabulary " << info->vocab_size
              << "\n";
  }
  if (check) {
    EK_RETURN_IF_ERROR(dataset.CheckAllTokens());
    std::cout << "every token was read and is in range\n";
  }
  std::cout << FormatLengthStatistics(ComputeLengthStatistics(dataset.document_lengths()));
  return absl::OkStatus();
}

void AddBuild(CLI::App& data, CommandBody* body) {
  CLI::App* command = data.add_subcommand("build", "Turn text files or JSONL into a data set");
  auto options = std::make_shared<DatasetBuildOptions>();
  command
      ->add_option("inputs", options->inputs,
                   "Text files (a document each), .jsonl files (a document a line), patterns")
      ->required();
  command
      ->add_option("-o,--output", options->output_prefix,
                   "Prefix: writes PREFIX.bin, PREFIX.idx, PREFIX.dataset.json")
      ->required();
  command->add_option("--json-key", options->jsonl_key, "Key of the text in JSONL")
      ->capture_default_str();
  command
      ->add_option("--validation-fraction", options->validation_fraction,
                   "Share of documents held out, in PREFIX_valid")
      ->check(CLI::Range(0.0, 0.999999))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the choice of held-out documents")
      ->capture_default_str();
  command->add_option("--min-tokens", options->min_tokens, "Leave out shorter documents")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--max-tokens", options->max_tokens, "Leave out longer documents")
      ->check(CLI::PositiveNumber);
  command->add_option("--skip-bad", options->skip_bad, "Skip up to so many unreadable documents")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->footer(
      "Examples:\n"
      "  evenkeel data build 'books/**/*.txt' -o data/books --validation-fraction 0.05\n"
      "  evenkeel data build web.jsonl --json-key content -o data/web\n"
      "\n"
      "Documents become UTF-8 bytes and an end-of-document token, in Megatron's indexed format.");
  command->callback([options, body] { *body = [options] { return Build(*options); }; });
}

void AddStat(CLI::App& data, CommandBody* body) {
  CLI::App* command = data.add_subcommand("stat", "Histogram of document lengths, in tokens");
  auto prefix = std::make_shared<std::string>();
  auto check = std::make_shared<bool>(false);
  command->add_option("prefix", *prefix, "Data set: prefix of .bin and .idx")->required();
  command->add_flag("--check", *check, "Also read every token");
  command->footer("Examples:\n  evenkeel data stat data/quickstart/train");
  command->callback(
      [prefix, check, body] { *body = [prefix, check] { return Stat(*prefix, *check); }; });
}

}  // namespace

void AddDataCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand("data", "Build and inspect data sets");
  command->require_subcommand(1);
  AddBuild(*command, body);
  AddStat(*command, body);
}

}  // namespace evenkeel
