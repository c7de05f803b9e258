//! The one way in which a test, or a part of one, is skipped, and the register of those that may be.
//!
//! A skip is printed, checked against [`REGISTER`] and recorded in a file of this run of `cargo test`;
//! `tests/tidy.rs`, whose program runs last, compares the records with the register and prints how many there were.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// Why a test is skipped: what it needs and is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The folder of real models, tokenizers and data, which are not this project's to publish.
    Shared,
    /// An NVIDIA GPU with its driver.
    Cuda,
    /// The path of nvcc in `LLAMAPROBE_TEST_NVCC`; `.ci/run` installs it.
    Nvcc,
    /// g++ on x86-64 Linux, which compiles the kernels for the CPU.
    Compiler,
    /// An instruction set with products of bfloat16 pairs (AVX512_BF16, AMX, NEON's BF16).
    Pairs,
    /// The right to mount a file system that can be full.
    Mount,
    /// Slurm, and leave to start its daemons, which `LLAMAPROBE_TEST_SLURM=1` gives; `.ci/run` installs it where it can.
    Slurm,
}

impl Reason {
    #[allow(dead_code)] // Read by tests/tidy.rs alone.
    pub const ALL: [Self; 7] =
        [Self::Shared, Self::Cuda, Self::Nvcc, Self::Compiler, Self::Pairs, Self::Mount, Self::Slurm];

    pub fn text(self) -> &'static str {
        match self {
            Self::Shared => "no ../shared",
            Self::Cuda => "no CUDA device",
            Self::Nvcc => "LLAMAPROBE_TEST_NVCC is not set",
            Self::Compiler => "no g++ on x86-64 Linux",
            Self::Pairs => "an instruction set without products of bfloat16",
            Self::Mount => "no right to mount a file system",
            Self::Slurm => "LLAMAPROBE_TEST_SLURM is not set",
        }
    }

    /// Whether only another machine or other rights could help, so that `LLAMAPROBE_REQUIRE_ALL=1` allows the skip.
    pub fn is_of_the_machine(self) -> bool {
        matches!(self, Self::Cuda | Self::Pairs | Self::Mount | Self::Slurm)
    }

    /// The tests that may be skipped for it, in whole or in part: `program::module::test`.
    pub fn tests(self) -> &'static [&'static str] {
        REGISTER.iter().find(|(reason, _)| *reason == self).map_or(&[], |(_, tests)| tests)
    }
}

/// Which tests may be skipped, and why.
const REGISTER: [(Reason, &[&str]); 7] = [
    (
        Reason::Shared,
        &[
            "cli::cases::added_tokens_are_those_of_transformers",
            "cli::cases::inspect_says_of_peft_what_peft_does",
            "cli::cases::keys_and_files_that_change_the_result_are_used",
            "cli::cases::other_published_forms_are_read_or_named",
            "cli::cases::templates_print_and_decide_as_jinja2",
            "cli::cases::valid_inputs_are_accepted",
            "cli::cases::values_beyond_the_stored_dtype_are_refused",
            "cli::real::real_model_generates_captures_and_probes",
            "engine::generate::generation_greedy_and_with_beams_is_that_of_transformers",
            "engine::golden_peft::lora_limits_see_small_mistakes",
            "engine::golden_peft::lora_of_a_trained_model_is_pefts",
            "engine::probe::probe_of_sentiment_on_a_trained_model",
            "engine::probe::probe_of_translation_has_no_accuracy",
            "formats::config::the_models_at_hand_load",
            "formats::lines::task_tables_are_read",
            "formats::safetensors::the_models_at_hand_open",
            "formats::tokenizer::ids_are_those_of_transformers",
            "formats::tokenizer::offsets_are_characters_of_the_whole_text",
            "formats::tokenizer::pieces_are_never_tokenised_apart",
            "formats::tokenizer::pieces_survive_dropped_characters",
            "formats::tokenizer::pipeline_follows_class_and_family_as_in_transformers",
            "formats::tokenizer::special_tokens_come_from_the_configuration",
            "formats::tokenizer::streamed_text_is_the_decoded_text",
            "task::data::the_original_files_are_read_whole",
            "task::prompts::prompts_are_whole_tokenisations",
            "task::prompts::real_data_is_read_whole",
        ],
    ),
    (
        Reason::Cuda,
        &[
            "ops::parity::cuda_attention_of_large_passes",
            "ops::parity::cuda_bf16",
            "ops::parity::cuda_f16",
            "ops::parity::cuda_f32",
            "ops::parity::cuda_rounds_as_families_do",
        ],
    ),
    (
        Reason::Nvcc,
        &[
            "ops::compiled::compiled_kernels_are_those_of_the_table",
            "ops::dependent::compiled_kernels_wait_before_all_else_where_they_are_asked_to",
            "ops::ptxas::attention_for_hopper_compiles_to_products_of_warpgroups_without_spills",
            "ops::ptxas::attention_compiles_to_tensor_core_instructions_without_spills",
            "ops::ptxas::simple_kernels_compile_without_spills",
            "ops::ptxas::the_build_embeds_binaries_for_the_devices_there_are_and_text_for_those_to_come",
            "ops::ptxas::the_gate_sees_spills_and_missing_tensor_cores",
        ],
    ),
    (
        Reason::Compiler,
        &[
            "ops::accesses::accesses_are_those_of_the_table",
            "ops::accesses::accesses_that_get_worse_are_counted",
            "ops::accesses::norms_read_a_row_once",
            "ops::dependent::kernels_that_wait_too_late_are_found",
            "ops::dependent::kernels_wait_before_they_use_memory",
            "ops::simt::attention_computes_what_it_says",
            "ops::simt::attention_for_hopper_computes_what_it_says",
            "ops::simt::attention_for_little_shared_memory_computes_what_it_says",
            "ops::simt::attention_of_the_other_dtypes_computes_what_it_says",
            "ops::simt::attention_with_capped_scores_computes_what_it_says",
            "ops::simt::kernels_stay_inside_their_memory",
            "ops::simt::planted_bugs_are_found",
            "ops::simt::planted_bugs_of_hopper_are_found",
            "ops::simt::simple_kernels_compute_what_they_say",
            "ops::simt::threads_of_a_block_do_not_race",
            "ops::tensor_copies::planted_bugs_of_tensor_copies_are_found",
            "ops::tensor_copies::tensor_copies_bring_boxes_swizzled_with_zeros_from_outside",
        ],
    ),
    (
        Reason::Pairs,
        &[
            "cli::capture::isa_gives_the_same_states_and_unknown_ones_are_refused",
            "ops::bits::cpu_f32x3",
            "ops::parity::cpu_f32x3",
        ],
    ),
    (Reason::Mount, &["cli::train::full_disk_is_one_error_and_loses_nothing"]),
    (Reason::Slurm, &["cli::slurm::sweep_by_slurm_is_that_of_one_machine"]),
];

/// Skips the running test, or a part of it, for a reason.
///
/// # Panics
/// If the register does not name the test under the reason, and if `LLAMAPROBE_REQUIRE_ALL=1` asks for what is missing.
pub fn skip(reason: Reason) {
    let test = running();
    println!("skipped: {test}: {}", reason.text());
    assert!(may_skip(&test, reason), "{test} is not in tests/support/skips.rs under {reason:?}");
    let all = std::env::var("LLAMAPROBE_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(!all || reason.is_of_the_machine(), "LLAMAPROBE_REQUIRE_ALL=1: {test}: {}", reason.text());
    // Where nothing can be recorded (a program carried to another machine), no last test reads the records either.
    let path = records();
    let _ = path.parent().map(fs::create_dir_all);
    if let Ok(mut file) = fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(format!("{test}\t{reason:?}\n").as_bytes());
    }
}

/// `program::module::test` of the running test; `program::main` where tests run one after another on the main thread.
fn running() -> String {
    let thread = std::thread::current();
    format!("{}::{}", env!("CARGO_CRATE_NAME"), thread.name().unwrap_or("main"))
}

/// Whether the register allows the skip.
pub fn may_skip(test: &str, reason: Reason) -> bool {
    let of_the_program = |program: &str| {
        reason.tests().iter().any(|registered| registered.strip_prefix(program).is_some_and(|r| r.starts_with("::")))
    };
    reason.tests().contains(&test) || test.strip_suffix("::main").is_some_and(of_the_program)
}

/// The file of this run's records. All programs of one `cargo test` have the same parent.
pub fn records() -> PathBuf {
    #[cfg(unix)]
    let run = std::os::unix::process::parent_id();
    #[cfg(not(unix))]
    let run = 0;
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("skips").join(run.to_string())
}
