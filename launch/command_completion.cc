#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/commands.h"

namespace evenkeel {
namespace {

// One case arm a command path: 'data build') commands='' options='--output ...';;
void AppendCases(const CLI::App& command, const std::string& path, std::string* cases) {
  std::vector<std::string> commands, options;
  for (const CLI::App* sub : command.get_subcommands({})) commands.push_back(sub->get_name());
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
  }
  absl::StrAppend(cases, "    '", path, "') commands='", absl::StrJoin(commands, " "),
                  "' options='", absl::StrJoin(options, " "), "';;\n");
  for (const CLI::App* sub : command.get_subcommands({})) {
    AppendCases(*sub, path.empty() ? sub->get_name() : absl::StrCat(path, " ", sub->get_name()),
                cases);
  }
}

std::string BashScript(const CLI::App& root) {
  std::string cases;
  AppendCases(root, "", &cases);
  return absl::StrCat(
      "# bash completion of evenkeel: source this file, or put it in\n"
      "# ~/.local/share/bash-completion/completions/evenkeel\n"
      "_evenkeel() {\n"
      "  local path='' commands='' options='' i word\n"
      "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
      "    word=${COMP_WORDS[i]}\n"
      "    case $word in -*) break;; esac\n"
      "    path=${path:+$path }$word\n"
      "  done\n"
      "  case $path in\n",
      cases,
      "  esac\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} words=$commands\n"
      "  [[ $current == -* ]] && words=$options\n"
      "  COMPREPLY=()\n"
      "  if [[ -n $words ]]; then\n"
      "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n"
      "  fi\n"
      "  if [[ ${#COMPREPLY[@]} -eq 0 ]]; then\n"
      "    mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n"
      "  fi\n"
      "}\n"
      "complete -o filenames -F _evenkeel evenkeel\n");
}

std::string ZshScript(const CLI::App& root) {
  return absl::StrCat("# zsh completion of evenkeel: source this file\n",
                      "autoload -U +X bashcompinit && bashcompinit\n", BashScript(root));
}

void AppendFish(const CLI::App& command, const std::vector<std::string>& path,
                std::string* script) {
  std::string condition = "__fish_use_subcommand";
  if (!path.empty()) {
    condition.clear();
    for (const std::string& name : path) {
      absl::StrAppend(&condition, condition.empty() ? "" : "; and ", "__fish_seen_subcommand_from ",
                      name);
    }
  }
  for (const CLI::App* sub : command.get_subcommands({})) {
    absl::StrAppend(script, "complete -c evenkeel -f -n '", condition, "' -a ", sub->get_name(),
                    " -d '", sub->get_description(), "'\n");
    std::vector<std::string> deeper = path;
    deeper.push_back(sub->get_name());
    AppendFish(*sub, deeper, script);
  }
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      absl::StrAppend(script, "complete -c evenkeel -n '", condition, "' -l ", name, "\n");
    }
  }
}

}  // namespace

void AddCompletionCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand("completion", "Print a completion script for a shell");
  auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->footer("Examples:\n  source <(evenkeel completion bash)");
  command->callback([&app, shell, body] {
    *body = [&app, shell]() -> absl::Status {
      std::string script;
      if (*shell == "fish") {
        AppendFish(app, {}, &script);
      } else {
        script = *shell == "zsh" ? ZshScript(app) : BashScript(app);
      }
      std::cout << script;
      return absl::OkStatus();
    };
  });
}

}  // namespace evenkeel
