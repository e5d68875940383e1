//! Kubernetes' own programs judge what ours write. They come from the cache of tools; a test whose
//! program is not there fails and says how it gets there.

mod kubeadm;
mod tools;
