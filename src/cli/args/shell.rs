//! Flags of `completions` and `man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llamaprobe completions bash > ~/.local/share/bash-completion/completions/llamaprobe
  llamaprobe completions zsh > ~/.zfunc/_llamaprobe
  llamaprobe completions fish > ~/.config/fish/completions/llamaprobe.fish

The script knows every command and flag, and the words that a flag takes. bash reads it with the
package bash-completion, zsh if `fpath+=~/.zfunc` comes before `compinit` in ~/.zshrc.")]
pub struct CompletionsArgs {
    /// Shell to write for.
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// `man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llamaprobe man --out ~/.local/share/man/man1
  llamaprobe man capture > llamaprobe-capture.1

Without a command the page is that of the program. --out writes llamaprobe.1, and for every command
a page of its own such as llamaprobe-capture.1 or llamaprobe-sweep-merge.1; `man llamaprobe-capture`
finds it there.")]
pub struct ManArgs {
    /// Command whose page to print, such as capture or sweep-merge [default: the program's own page].
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    pub command: Option<String>,
    /// Directory to write all pages to.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
