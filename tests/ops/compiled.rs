//! What the compiler makes of the kernels that a step of training spends its time in, held to a table
//! (`tests/counts/compiled.csv`): registers, spills, shared memory, blocks on a multiprocessor, instructions and loads of
//! matrices for each tensor-core product, and loads in flight. No time is claimed: these are counts.
//!
//! The table is that of nvcc 13.0.88, which `.ci/run` installs; another compiler counts something else.

use std::path::Path;
use std::process::Command;

use llamaprobe::arch::Dtype;

use crate::counts::{Column, Table, high, low};
use crate::ops::simt::machine::{self, Build as Constants};
use crate::ptxas::{self, Build};
use crate::sass::{Listing, Multiprocessor, Path as MainPath};

/// The compiler of the table.
const NVCC: &str = "V13.0.88";

/// Bytes of shared memory are static and dynamic ones together. `instructions` and `matrices` are for each product of the main
/// loop; of a kernel without products, `instructions` are all that it has.
static COLUMNS: [Column; 9] = [
    low("registers"),
    low("spills"),
    low("shared"),
    high("blocks"),
    low("instructions"),
    low("matrices"),
    high("copies"),
    high("loads"),
    low("waits"),
];

/// Files whose kernels a step runs through, attention aside.
const FILES: [&str; 10] =
    ["activation", "adamw", "cross_entropy", "embed", "layer_norm", "lora", "quantized", "rms_norm", "rope", "rows"];
/// Kernels of attention that have no main loop of products, and are of no step.
const BESIDE: [&str; 2] = ["attention_pattern", "attention_result"];

/// Threads of a block, of what the declaration of a kernel says of them, in a text that says what its constants are.
fn threads(declared: &str, text: &str, constants: Constants) -> usize {
    let constant = |name: &str| text.split_once(&format!("constexpr int {name} = "))?.1.split_once(';')?.0.parse().ok();
    let factor = |word: &str| match word.trim() {
        "WARPS" => constants.warps,
        word => word.parse().ok().or(constant(word)).unwrap_or_else(|| panic!("threads {declared}")),
    };
    declared.split('*').map(factor).product()
}

/// Asynchronous copies of 16 bytes that a thread issues in a step of the main loop.
fn copies(kernel: &str, constants: Constants, dtype: Dtype) -> usize {
    let Constants { head_dim, warps, fwd_step, bwd_step, .. } = constants;
    let step = if kernel.starts_with("attention_fwd") { fwd_step } else { bwd_step };
    2 * step * head_dim * dtype.size() / 16 / (32 * warps)
}

/// A kernel's row of the table.
fn row(path: MainPath, listing: &Listing, resources: ptxas::Resources, shared: usize, blocks: usize) -> [f64; 9] {
    let of_product = |n: usize| if path.products == 0 { n as f64 } else { n as f64 / path.products as f64 };
    let instructions = if path.products == 0 { listing.0.len() } else { path.instructions };
    let MainPath { matrices, copies, loads, waits, .. } = path;
    let ptxas::Resources { registers, spills, .. } = resources;
    let whole = |n: usize| n as f64;
    [
        whole(registers),
        whole(spills),
        whole(shared),
        whole(blocks),
        of_product(instructions),
        of_product(matrices),
        whole(copies),
        whole(loads),
        whole(waits),
    ]
}

/// Adds the kernels of a file as they are built for a dtype.
fn count(
    table: &mut Table,
    nvcc: &Path,
    text: &str,
    kernels: &[machine::Signature],
    dtype: Dtype,
    attention: Option<Constants>,
) {
    let constants = attention.unwrap_or(Constants::new(dtype, 16));
    let macros = attention.map_or(vec![], |a| a.macros());
    let build = Build::new(nvcc, text, dtype, &macros);
    for device in ["80", "90a"] {
        let [constants, attention] =
            [Some(constants), attention].map(|a| a.map(|a| if device == "80" { a.small() } else { a }));
        let constants = constants.unwrap();
        let empty = |name: &str| match name {
            "attention_fwd_128" => attention.is_some_and(|a| !a.has_long_blocks(dtype)),
            "attention_fwd_hopper" => device == "80",
            _ => false,
        };
        for kernel in kernels.iter().filter(|kernel| !BESIDE.contains(&kernel.name) && !empty(kernel.name)) {
            let key = (device.to_string(), kernel.name.to_string());
            let (listing, resources) = (&build.listings[&key], build.resources[&key]);
            let path = listing.path(copies(kernel.name, constants, dtype));
            let shared = resources.shared + attention.map_or(0, |a| a.shared(kernel.name, dtype));
            let threads = threads(kernel.threads, text, constants);
            let blocks = Multiprocessor::of(device).blocks(threads, resources.registers, shared);
            let width = attention.map_or(String::new(), |a| format!(" {}", a.head_dim));
            let of = format!("{} {}{width} sm_{device}", kernel.name, machine::type_name(dtype));
            table.add(of, &row(path, listing, resources, shared, blocks));
        }
    }
}

#[test]
fn compiled_kernels_are_those_of_the_table() {
    let Some(nvcc) = ptxas::nvcc() else { return };
    let version = Command::new(&nvcc).arg("--version").output().unwrap().stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    assert!(version.contains(NVCC), "LLAMAPROBE_TEST_NVCC: expected {NVCC}, of which the table is; found {version}");
    let mut table = Table::new(&COLUMNS);
    let text = machine::text(&machine::simple());
    let ours = machine::text(&FILES);
    count(&mut table, &nvcc, &text, &machine::signatures(&ours), Dtype::BF16, None);
    let text = machine::text(&["attention"]);
    for (dtype, width) in [(Dtype::BF16, 64), (Dtype::BF16, 128), (Dtype::BF16, 256), (Dtype::F32, 64)] {
        count(&mut table, &nvcc, &text, &machine::signatures(&text), dtype, Some(Constants::new(dtype, width)));
    }
    let text = machine::text(&["attention_hopper"]);
    for width in [64, 128] {
        let constants = Constants::new(Dtype::BF16, width).hopper();
        count(&mut table, &nvcc, &text, &machine::signatures(&text), Dtype::BF16, Some(constants));
    }
    let most =
        [("attention_fwd", 5.7), ("attention_fwd_128", 5.0), ("attention_bwd_dq", 4.5), ("attention_bwd_dkv", 5.5)];
    for (kernel, most) in most {
        let found = table.count(&format!("{kernel} bf16 128 sm_90a"), "instructions");
        assert!(found <= most, "{kernel}: {found} instructions for each product, at most {most}");
    }
    let matrices = table.count("attention_fwd_128 bf16 128 sm_90a", "matrices");
    assert!(matrices <= 0.32, "attention_fwd_128: {matrices} loads of matrices for each product, at most 0.32");
    for device in ["sm_80", "sm_90a"] {
        for kernel in ["attention_fwd", "attention_fwd_128"] {
            let blocks = table.count(&format!("{kernel} bf16 128 {device}"), "blocks");
            assert!(blocks >= 2.0, "{kernel} on {device}: {blocks} blocks on a multiprocessor, at least 2");
        }
        for kernel in ["lora_fwd_shrink", "lora_bwd_xa"] {
            let loads = table.count(&format!("{kernel} bf16 {device}"), "loads");
            assert!(loads >= 12.0, "{kernel} on {device}: {loads} loads before the first use, at least 12");
        }
    }
    table.hold("compiled", "--test ops compiled_kernels");
}
