//! Hostile input for every reader: written by hand ([`written`]), and made at random from valid files ([`targets`]).
//! `README.md` beside this file says how to run more of it, how to repeat a case, and what has been run.

mod files;
mod json;
mod limits;
mod mutate;
mod run;
mod seeds;
mod targets;
mod written;
