//! The CNI plugin on a node with a real datapath, called as a container runtime does. No agent runs, except in
//! `agent` and in one test of `concurrency`. Each test's name is the sentence it proves. Needs root and a BPF
//! file system.

mod add;
mod agent;
mod binary;
mod check;
mod concurrency;
mod del;
mod gc;
mod leak;
mod moved_leases;
mod promotion;
mod rollback;
mod state;
mod verbs;
