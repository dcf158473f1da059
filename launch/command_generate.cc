#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <system_error>

#include "absl/strings/str_format.h"
#include "launch/commands.h"
#include "launch/device_option.h"
#include "launch/generator.h"
#include "launch/model_folder.h"
#include "launch/rank_runtime.h"
#include "models/hugging_face.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/byte_tokenizer.h"
#include "runtime/data/data_error.h"

namespace evenkeel {
namespace {

struct GenerateOptions {
  std::string model;
  std::string prompt;
  std::string prompt_file;
  GenerationOptions generation;
  int64_t threads = 0;
  Device device = Device::kCpu;
  bool quiet = false;
};

absl::StatusOr<std::string> PromptText(const GenerateOptions& options) {
  if (options.prompt_file.empty()) return options.prompt;
  std::error_code error;
  if (std::filesystem::is_directory(options.prompt_file, error)) {
    return DataError(options.prompt_file + ": is a folder; --prompt-file takes a text file");
  }
  std::ifstream file(options.prompt_file, std::ios::binary);
  std::ostringstream text;
  // Unlike an iterator over the file, this does not throw when a read fails.
  if (file.peek() != std::ifstream::traits_type::eof()) text << file.rdbuf();
  if (file.bad() || !file.is_open()) return DataError(options.prompt_file + ": cannot be read");
  return text.str();
}

absl::Status GenerateText(const GenerateOptions& options) {
  RankOptions rank_options;
  rank_options.threads = options.threads;
  SetDevice(options.device, &rank_options);
  rank_options.many_ranks = false;
  return RunOnRank(rank_options, [&](const RankRuntime& rank) -> absl::Status {
    if (rank.comm.rank() != 0) return absl::OkStatus();
    EK_ASSIGN_OR_RETURN(const std::string folder, FindModelFolder(options.model));
    EK_ASSIGN_OR_RETURN(Model model, LoadModel(rank.context, folder, rank.tracker));
    if (model.config().vocab_size < kByteVocabSize) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s has a vocabulary of %d: this program's byte tokenizer needs %d",
                          folder, model.config().vocab_size, kByteVocabSize));
    }
    EK_ASSIGN_OR_RETURN(const std::string text, PromptText(options));
    std::vector<int32_t> prompt = EncodeBytes(text);
    // Training has no token for the beginning of a document; the end of another one serves.
    if (prompt.empty()) prompt.push_back(kByteEod);
    GenerationOptions generation = options.generation;
    generation.stop_token = kByteEod;
    ByteDecoder decoder;
    int64_t count = 0;
    std::cout << text << std::flush;
    const auto start = std::chrono::steady_clock::now();
    EK_RETURN_IF_ERROR(
        Generate(rank.context, model, prompt, generation, rank.tracker, [&](int32_t token) {
          std::cout << decoder.Push(token) << std::flush;
          ++count;
          return std::cout.good();
        }));
    std::cout << decoder.Flush() << "\n" << std::flush;
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!options.quiet) {
      LogInfo(absl::StrFormat("[%d tokens in %.1f s, %.0f tokens/s]", count, seconds,
                              static_cast<double>(count) / seconds));
    }
    return absl::OkStatus();
  });
}

}  // namespace

void AddGenerateCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand("generate", "Write text with a trained model");
  auto options = std::make_shared<GenerateOptions>();
  SamplingOptions& sampling = options->generation.sampling;
  sampling.temperature = 0.8;
  command->add_option("-m,--model", options->model, "Run folder, checkpoint or Hugging Face folder")
      ->required();
  auto* prompt = command->add_option("-p,--prompt", options->prompt, "Text to go on from");
  command->add_option("--prompt-file", options->prompt_file, "The same, from a file")
      ->excludes(prompt);
  command->add_option("-n,--max-tokens", options->generation.max_new_tokens, "Tokens to write")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("-t,--temperature", sampling.temperature, "0 = always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Choose among the k likeliest; 0 = all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--top-p", sampling.top_p, "Choose among the likeliest of this much probability")
      ->check(CLI::Range(1e-9, 1.0))
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "Same seed, same text")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  AddDeviceOption(*command, &options->device);
  command->add_option("--threads", options->threads, "0 = all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("-q,--quiet", options->quiet, "Print the text alone");
  command->footer(
      "Examples:\n"
      "  evenkeel generate --model runs/quickstart --prompt 'The following'\n"
      "  evenkeel generate -m runs/quickstart -p 'use strict;' -t 0 -n 100\n"
      "  evenkeel generate -m runs/quickstart --prompt-file story.txt --top-p 0.9 --seed 7");
  command->callback([options, body] { *body = [options] { return GenerateText(*options); }; });
}

}  // namespace evenkeel
