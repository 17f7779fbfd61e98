//! The whole command line as one definition, from which man pages and shell completions are made
//! (`examples/manual.rs`).
//!
//! The program itself never builds it: most commands have parsers of their own, so that `vmm run` does not pay for
//! their definition. Here the definition of each such command replaces the unparsed arguments.

use clap::{Args, Command, CommandFactory};

use super::checkpoint::{CheckpointArgs, RestoreArgs};
use super::container::{CreateArgs, DeleteArgs, ExecArgs, IdArgs, KillArgs, ListArgs, PsArgs};
use super::pod::PodArgs;
use super::template::TemplateArgs;
use super::update::{EventsArgs, UpdateArgs};
use super::{Cli, LogArgs};

/// Makes the definition of one command.
type Definition = fn() -> Command;

/// The commands with parsers of their own, and the definitions of these parsers.
const OWN: [(&str, Definition); 16] = [
    ("create", CreateArgs::command),
    ("start", IdArgs::command),
    ("state", IdArgs::command),
    ("kill", KillArgs::command),
    ("delete", DeleteArgs::command),
    ("exec", ExecArgs::command),
    ("list", ListArgs::command),
    ("ps", PsArgs::command),
    ("checkpoint", CheckpointArgs::command),
    ("restore", RestoreArgs::command),
    ("pause", IdArgs::command),
    ("resume", IdArgs::command),
    ("pod", PodArgs::command),
    ("template", TemplateArgs::command),
    ("update", UpdateArgs::command),
    ("events", EventsArgs::command),
];

/// Returns the definition of `vmm` with every command's own flags and arguments.
pub fn command() -> Command {
    // Flags that `Cli` declares as global do not reach a command with a parser of its own.
    let top = Cli::command().mut_args(|arg| arg.global(false));
    let mut place = 0;
    top.mut_subcommands(|listed| {
        let about = listed.get_about().cloned().unwrap_or_default();
        place += 1;
        let definition = match OWN.iter().find(|(name, _)| *name == listed.get_name()) {
            Some((name, definition)) => definition().name(*name).bin_name(format!("vmm {name}")),
            None => LogArgs::augment_args(listed).mut_args(|arg| arg.global(false)),
        };
        // The definition of a parser also has a description and a place in the list. Those in `Cli` count.
        definition.about(about).display_order(place)
    })
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Error, Parser};

    use super::*;
    use crate::cli::Command as Listed;
    use crate::cli::container::read;

    /// Whether an argument takes words unread for a parser of their own.
    fn is_unread(arg: &Arg) -> bool {
        arg.get_id() == "words" && arg.is_trailing_var_arg_set()
    }

    /// Reads `vmm WORDS` as the program does and returns the help text that it prints.
    fn printed_help(words: &[&str]) -> String {
        let listed = match Cli::try_parse_from([&["vmm"], words].concat()) {
            Ok(cli) => cli.command.expect("a command was given"),
            Err(help) => return help.to_string(),
        };
        let error: Error = match listed {
            Listed::Pod(rest) => read::<PodArgs>("pod", rest).unwrap_err(),
            Listed::Template(rest) => read::<TemplateArgs>("template", rest).unwrap_err(),
            Listed::Update(rest) => read::<UpdateArgs>("update", rest).unwrap_err(),
            Listed::Events(rest) => read::<EventsArgs>("events", rest).unwrap_err(),
            Listed::Create(rest) => read::<CreateArgs>("create", rest).unwrap_err(),
            Listed::Start(rest) => read::<IdArgs>("start", rest).unwrap_err(),
            Listed::State(rest) => read::<IdArgs>("state", rest).unwrap_err(),
            Listed::Kill(rest) => read::<KillArgs>("kill", rest).unwrap_err(),
            Listed::Delete(rest) => read::<DeleteArgs>("delete", rest).unwrap_err(),
            Listed::Exec(rest) => read::<ExecArgs>("exec", rest).unwrap_err(),
            Listed::List(rest) => read::<ListArgs>("list", rest).unwrap_err(),
            Listed::Ps(rest) => read::<PsArgs>("ps", rest).unwrap_err(),
            Listed::Checkpoint(rest) => read::<CheckpointArgs>("checkpoint", rest).unwrap_err(),
            Listed::Restore(rest) => read::<RestoreArgs>("restore", rest).unwrap_err(),
            Listed::Pause(rest) => read::<IdArgs>("pause", rest).unwrap_err(),
            Listed::Resume(rest) => read::<IdArgs>("resume", rest).unwrap_err(),
            Listed::Run(_) | Listed::Spec(_) | Listed::Check | Listed::Features => {
                unreachable!("their parser is `Cli`, which has printed the help")
            }
        };
        error.to_string()
    }

    /// What a help text says of flags and arguments, in no order: that of global flags is the parser's own.
    fn lines_from_usage(help: &str) -> Vec<&str> {
        let mut lines: Vec<&str> = help.lines().skip_while(|line| !line.starts_with("Usage:")).collect();
        lines.sort_unstable();
        lines
    }

    fn leaves<'a>(command: &'a Command, path: &[&'a str], all: &mut Vec<(Vec<String>, &'a Command)>) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path = [path, &[sub.get_name()]].concat();
            all.push((path.iter().map(ToString::to_string).collect(), sub));
            leaves(sub, &path, all);
        }
    }

    #[test]
    fn every_command_s_definition_is_the_one_that_reads_it() {
        let mut tree = command();
        tree.build();
        let mut all = Vec::new();
        leaves(&tree, &[], &mut all);
        assert!(all.len() > 25, "{}", all.len());
        for (path, definition) in all {
            let mut words: Vec<&str> = path.iter().map(String::as_str).collect();
            words.push("-h");
            let printed = printed_help(&words);
            let generated = definition.clone().render_help().to_string();
            assert_eq!(lines_from_usage(&generated), lines_from_usage(&printed), "{path:?}");
            assert!(printed.contains("Usage: "), "{printed}");
        }
    }

    #[test]
    fn commands_are_listed_as_the_program_lists_them() {
        let list = |mut command: Command| -> Vec<String> {
            let help = command.render_help().to_string();
            let commands = help.lines().skip_while(|line| *line != "Commands:");
            commands.take_while(|line| !line.is_empty()).map(str::to_owned).collect()
        };
        assert!(list(command()).len() > 15);
        assert_eq!(list(command()), list(Cli::command()));
    }

    #[test]
    fn no_command_takes_words_unread_and_each_says_what_it_does() {
        let mut tree = command();
        tree.build();
        let mut all = Vec::new();
        leaves(&tree, &[], &mut all);
        for (path, definition) in all {
            assert!(!definition.get_arguments().any(is_unread), "{path:?} has no definition of its own");
            assert!(definition.get_about().is_some(), "{path:?}");
            assert_eq!(definition.get_bin_name(), Some(format!("vmm {}", path.join(" ")).as_str()));
        }
    }
}
