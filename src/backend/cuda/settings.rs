//! What a caller decides.

use std::path::PathBuf;

use super::driver::Device;

/// By which of the algorithms that cuBLASLt offers products are computed (`algorithms.rs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GemmAlgorithms {
    /// The one that its heuristic expects to be the quickest.
    First,
    /// The one that was the quickest when they were timed on the device, which is done once.
    #[default]
    Timed,
    /// The same, timed again.
    Retimed,
}

impl GemmAlgorithms {
    /// All, by the names that they have in the environment.
    pub const NAMES: [(&'static str, Self); 3] =
        [("first", Self::First), ("timed", Self::Timed), ("retime", Self::Retimed)];

    /// The one of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, gemm)| *gemm)
    }
}

/// Where to look for what is not on the loader's path, and how much to pin.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories with NVRTC and cuBLASLt, best first.
    pub library_dirs: Vec<PathBuf>,
    /// Where kernels compiled at run time are cached, and the algorithms of products that were chosen by their times; none to compile
    /// them every time, and to time nothing.
    pub cache_dir: Option<PathBuf>,
    /// Pinned memory for captures, in bytes.
    pub capture_bytes: usize,
    /// Wait after every operation, so that an error has one operation's name.
    pub blocking: bool,
    /// Whether a device of compute capability 9.0 may use the attention that is for it alone, which no GPU has run yet.
    pub hopper: bool,
    /// Whether kernels may be launched while the kernel before them still runs, on devices of compute capability 9.0 and newer;
    /// then they are compiled at run time. No GPU has run it yet.
    pub pdl: bool,
    /// How the algorithms of products are chosen.
    pub gemm: GemmAlgorithms,
    /// Told in one line of what was found wrong and put right, such as a damaged file of the cache.
    pub on_warning: fn(&str),
}

impl Settings {
    /// Whether kernels of a device wait by themselves for the kernel before them.
    pub(super) fn pdl_on(&self, device: &Device) -> bool {
        self.pdl && device.arch() >= (9, 0)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            library_dirs: Vec::new(),
            cache_dir: None,
            capture_bytes: 1 << 30,
            blocking: false,
            hopper: false,
            pdl: false,
            gemm: GemmAlgorithms::default(),
            on_warning: |_| {},
        }
    }
}
