//! `prunectl doctor`: what this machine and this build offer.

use std::path::Path;

use clap::Args;
use serde_json::json;

use crate::cli::DONE;
use crate::commands::{print, print_json};
use crate::error::Result;
use crate::hub::HubEnv;
use crate::session::{DeviceChoice, Options, device_name};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {}

impl Doctor {
    /// Prints what there is.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let devices: Vec<_> = [DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Metal]
            .into_iter()
            .map(|choice| (choice.to_string(), choice.open().map(|d| device_name(&d)).map_err(|e| e.to_string())))
            .collect();
        let features: Vec<&str> =
            [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))].into_iter().filter(|f| f.1).map(|f| f.0).collect();
        let threads = rayon::current_num_threads();
        let memory = memory_bytes();
        let writable = tempfile_in_cwd();
        let here = std::env::current_dir().unwrap_or_default();
        let hub = HubEnv::read();
        let disks = [("here", here.as_path()), ("hub cache", hub.cache.as_path()), ("temporary files", &std::env::temp_dir())]
            .map(|(what, path)| (what, path.to_owned(), free_bytes(path)));
        let token = if hub.token.is_some() { "present" } else { "none" };
        if options.json {
            print_json(&json!({
                "prunectl": env!("CARGO_PKG_VERSION"),
                "os": std::env::consts::OS,
                "arch": std::env::consts::ARCH,
                "threads": threads,
                "memory_bytes": memory,
                "features": features,
                "devices": devices.iter().map(|(name, d)| json!({
                    "device": name, "usable": d.is_ok(), "reason": d.as_ref().err(),
                })).collect::<Vec<_>>(),
                "working_directory_writable": writable.is_ok(),
                "hub": {"endpoint": hub.endpoint, "cache": hub.cache, "cache_exists": hub.cache.is_dir(), "token": token, "offline": hub.offline},
                "disks": disks.iter().map(|(what, path, free)| json!({"what": what, "path": path, "free_bytes": free})).collect::<Vec<_>>(),
            }))?;
            return DONE;
        }
        let mut text = format!("prunectl {} on {} {}\n", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
        text += &format!("threads   {threads} (RAYON_NUM_THREADS sets another number; results do not depend on it)\n");
        if let Some(bytes) = memory {
            text += &format!("memory    {:.1} GiB\n", bytes as f64 / (1u64 << 30) as f64);
        }
        text += &format!("features  {}\n", if features.is_empty() { "none".to_owned() } else { features.join(", ") });
        for (name, device) in &devices {
            text += &match device {
                Ok(_) => format!("{name:<9} usable\n"),
                Err(e) => format!("{name:<9} no: {e}\n"),
            };
        }
        text += &match writable {
            Ok(()) => "folder    the working directory can be written\n".to_owned(),
            Err(e) => format!("folder    the working directory can't be written ({e}); give --out, and save to another folder\n"),
        };
        text += &format!("hub       {}{}\n", hub.endpoint, if hub.offline { ", offline (HF_HUB_OFFLINE)" } else { "" });
        text += &format!("cache     {}{}\n", hub.cache.display(), if hub.cache.is_dir() { "" } else { " (not there yet)" });
        text += &format!(
            "token     {token}{}\n",
            if hub.token.is_some() { "" } else { " (HF_TOKEN, or `hf auth login`, for gated repositories)" }
        );
        for (what, path, free) in &disks {
            let free = free.map_or_else(|| "unknown".to_owned(), |b| format!("{:.1} GiB free", b as f64 / (1u64 << 30) as f64));
            text += &format!("disk      {free} {what} ({})\n", path.display());
        }
        print(&text)?;
        DONE
    }
}

/// Free room for this user on the file system that holds the path, or the nearest folder above it that exists.
fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        let there = path.ancestors().find(|p| p.exists())?;
        let disk = rustix::fs::statvfs(there).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = path;
        None
    }
}

/// Physical memory, where the system tells.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn tempfile_in_cwd() -> std::io::Result<()> {
    let path = std::path::PathBuf::from(format!(".prunectl-doctor-{}", std::process::id()));
    std::fs::write(&path, b"x").and_then(|()| std::fs::remove_file(&path))
}
