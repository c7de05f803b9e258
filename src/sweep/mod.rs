//! Many runs of one command as cells of a grid, on one machine or many: nothing is computed twice, nothing is lost.
//!
//! A [`Grid`](grid::Grid) says which command, flags and values; its combinations are the cells of a [`Plan`](plan::Plan). A cell is
//! named by the digest of all that its result depends on (the command with all its flags, the content of the files that they
//! name, the version of the program), so that the same cell is the same directory whatever grid asks for it.
//!
//! ```text
//! DIR/sweep.json       the plan
//!     plans/           every plan that was begun, by its digest: a worker has that of who started it
//!     inputs.json      digests of the files that flags name, so that weights are read once
//!     cells/KEY/       what the command has written, and cell.json: complete, since it got its name when it was
//!     failed/KEY.json  why a cell has no result
//!     work/KEY/        a cell on its way, of who holds its lock
//!     locks/KEY.lock   locks of the system, which end with their process
//!     slurm/           of the executor: arrays, what was submitted, what jobs said
//!     table.csv  report.json  report.html    all cells, merged
//! ```
//!
//! Who works ([`work`]) locks the cells of a group ([`groups`]), computes those that have no result, and names each directory
//! when it is complete. So any number of processes on any number of machines may work on one directory, and any of them
//! may be killed: a lock of the system (`flock`) ends with its process, and what it had not named is computed again. The
//! file system must have locks that hold between its machines (NFS since version 3, Lustre mounted with `flock`, GPFS,
//! CephFS).
#![doc = include_str!("cluster.md")]

pub mod executor;
pub mod grid;
pub mod groups;
pub mod merge;
pub mod plan;
pub mod shard;
pub mod store;
pub mod values;
pub mod work;
