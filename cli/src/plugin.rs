//! One program, two names: `tandem`, and as `kubectl-tandem` what `kubectl tandem` runs.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::Arguments;

/// The command line, under the name by which it was called.
pub(crate) fn command() -> Command {
    let called = std::env::args_os().next();
    let called = called.as_deref().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    named(called == "kubectl-tandem")
}

fn named(plugin: bool) -> Command {
    let command = Arguments::command();
    if plugin { examples_of_plugin(command.bin_name("kubectl tandem")) } else { command }
}

/// Examples that can be pasted name the program as it was called.
fn examples_of_plugin(command: Command) -> Command {
    let command = match command.get_after_help().map(ToString::to_string) {
        Some(text) => command.after_help(text.replace("  tandem ", "  kubectl tandem ")),
        None => command,
    };
    command.mut_subcommands(examples_of_plugin)
}

/// A completion script of `tandem`.
pub(crate) fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tandem", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        named(false).debug_assert();
        named(true).debug_assert();
    }

    #[test]
    fn every_shell_gets_a_completion_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(completion(shell).contains("join-token"), "{shell}");
        }
    }

    #[test]
    fn commands_of_weights_and_secrets_show_examples() {
        for words in [["models", "pull"], ["models", "prune"], ["models", "import"], ["secret", "set"]] {
            let arguments = ["tandem"].into_iter().chain(words).chain(["--help"]);
            let help = named(false).try_get_matches_from_mut(arguments).unwrap_err().to_string();
            assert!(help.contains(&format!("\n  tandem {} {}", words[0], words[1])), "{help}");
        }
    }

    #[test]
    fn help_names_the_program_as_it_was_called() {
        let mut plugin = named(true);
        let help =
            plugin.try_get_matches_from_mut(["kubectl-tandem", "apply", "--help"]).unwrap_err().to_string();
        assert!(
            help.contains("Usage: kubectl tandem apply") && help.contains("  kubectl tandem apply -f"),
            "{help}"
        );
    }
}
