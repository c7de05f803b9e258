//! `completions` and `man`: what a shell and `man` know of the program, from the same list of flags as `--help`.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::{Failure, output};
use crate::error::nearest;
use crate::formats::atomic;
use crate::{Error, Result};

pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    output::line(script(args.shell).trim_end_matches('\n'))
}

pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let cli = documented();
    if let Some(out) = &args.out {
        for command in with_subcommands(&cli) {
            let path = out.join(Man::new(command.clone()).get_filename());
            atomic::write(&path, page(command)?.as_bytes())?;
            output::line(path.display())?;
        }
        return Ok(());
    }
    let all = with_subcommands(&cli);
    let command = match &args.command {
        None => &cli,
        Some(name) => all.iter().skip(1).find(|command| short_name(command) == name).ok_or_else(|| {
            let nearest = nearest(name, all.iter().skip(1).map(|command| short_name(command))).unwrap_or_default();
            Error::argument("COMMAND", format!("a command (nearest: {nearest})"), name)
        })?,
    };
    output::line(page(command)?.trim_end_matches('\n'))
}

/// The program with its commands, each of which knows its whole name.
fn documented() -> Command {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    cli
}

/// A command, and those below it that are the user's.
fn with_subcommands(command: &Command) -> Vec<&Command> {
    let own = command.get_subcommands().filter(|command| !command.is_hide_set());
    std::iter::once(command).chain(own.flat_map(with_subcommands)).collect()
}

/// The name of a command in its page without that of the program: `sweep-merge`.
fn short_name(command: &Command) -> &str {
    let name = command.get_display_name().unwrap_or(command.get_name());
    name.strip_prefix("llamaprobe-").unwrap_or(name)
}

/// `sweep` without what is hidden below it, which clap would complete as well.
fn shown(sweep: &Command) -> Command {
    let own = sweep.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let about = sweep.get_about().cloned().unwrap_or_default();
    Command::new("sweep").about(about).args(sweep.get_arguments().cloned()).subcommands(own)
}

/// What completes the program's words in a shell.
fn script(shell: Shell) -> String {
    let mut cli = Cli::command().mut_subcommand("sweep", |sweep| shown(&sweep));
    let name = cli.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli, name, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The page of a command in roff.
fn page(command: &Command) -> Result<String> {
    let program = Cli::command();
    let source = format!("{} {}", program.get_name(), program.get_version().unwrap_or_default());
    let man = Man::new(command.clone()).source(source);
    let mut text = Vec::new();
    let mut write = || {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut text)?;
        }
        notes(command).to_writer(&mut text)
    };
    write().map_err(Error::io("render", "a manual page"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What stands below the flags in the help: examples, line by line, and prose.
fn notes(command: &Command) -> Roff {
    let mut roff = Roff::new();
    let Some(help) = command.get_after_help().map(ToString::to_string) else { return roff };
    roff.control("SH", ["EXAMPLES AND NOTES"]);
    let mut is_filled = true;
    for line in help.lines() {
        if line.is_empty() {
            roff.control("PP", []);
            continue;
        }
        // An example is copied: it may not be broken elsewhere.
        let fill = !line.starts_with(' ');
        if fill != is_filled {
            roff.control(if fill { "fi" } else { "nf" }, []);
            is_filled = fill;
        }
        roff.text([roman(line)]);
    }
    if !is_filled {
        roff.control("fi", []);
    }
    roff
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// Every command's name with its flags, each with its dashes.
    fn all() -> Vec<(String, Vec<String>)> {
        let cli = documented();
        cli.get_subcommands().map(|command| (command.get_name().to_owned(), flags(command))).collect()
    }

    fn flags(command: &Command) -> Vec<String> {
        command.get_arguments().filter_map(clap::Arg::get_long).map(|long| format!("--{long}")).collect()
    }

    /// Whether `text` has `word`, which no letter or dash goes on.
    fn has(text: &str, word: &str) -> bool {
        text.match_indices(word).any(|(at, _)| {
            let next = text[at + word.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '-')
        })
    }

    #[test]
    fn pages_name_every_command_and_flag() {
        let plain = |command: &Command| page(command).expect("a page").replace("\\-", "-");
        let cli = documented();
        let of_program = plain(&cli);
        assert!(all().len() > 15);
        for (name, flags) in all() {
            assert!(has(&of_program, &format!("llamaprobe-{name}(1)")), "{name}");
            let own = plain(cli.find_subcommand(&name).expect("a command"));
            assert!(own.contains(&format!(".TH llamaprobe-{name} 1")), "{name}: {own}");
            for flag in flags {
                assert!(has(&own, &format!("\\fB{flag}\\fR")), "{name} {flag}: {own}");
            }
            assert!(own.contains("EXAMPLES AND NOTES") && own.contains("\n.nf\n"), "{name}");
        }
        let of_sweep = plain(cli.find_subcommand("sweep").expect("a command"));
        let below = |name: &str| with_subcommands(&cli).into_iter().find(|command| short_name(command) == name);
        for name in ["sweep-merge", "sweep-status"] {
            let command = below(name).unwrap_or_else(|| panic!("no {name}"));
            let own = plain(command);
            assert!(
                own.contains(&format!(".TH llamaprobe-{name} 1")) && has(&of_sweep, &format!("llamaprobe-{name}(1)"))
            );
            assert!(flags(command).iter().all(|flag| has(&own, &format!("\\fB{flag}\\fR"))), "{name}: {own}");
        }
        assert!(below("sweep-worker").is_none() && !of_sweep.contains("worker"), "{of_sweep}");
    }

    #[test]
    fn scripts_name_every_command_and_flag() {
        for &shell in Shell::value_variants() {
            let text = script(shell);
            assert!(has(&text, "status") && !has(&text, "worker") && !text.contains("tethered"), "{shell}: sweep");
            for (name, flags) in all() {
                assert!(has(&text, &name), "{shell}: {name}");
                for flag in flags {
                    let flag = if shell == Shell::Fish { format!("-l {}", &flag[2..]) } else { flag };
                    assert!(has(&text, &flag), "{shell}: {name} {flag}");
                }
            }
        }
        // Of bash, whose script has a list of words for each command, each in the right one.
        let bash = script(Shell::Bash);
        for (name, flags) in all() {
            let behind = |text: &str| bash.split_once(text).unwrap_or_else(|| panic!("{name}: no {text}")).1;
            let quoted = |text: &str| text.split('"').nth(1).unwrap_or_default().to_owned();
            let label = quoted(behind(&format!("llamaprobe,{name})")));
            let words = quoted(behind(&format!("\n        {label})\n")));
            let words: Vec<&str> = words.split_whitespace().collect();
            for flag in flags {
                assert!(words.contains(&flag.as_str()), "{name} {flag}: {words:?}");
            }
        }
    }
}
