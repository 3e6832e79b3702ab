//! What a command works with: the options that hold for all of it, and the device that they name.

use std::str::FromStr;

use candle_core::{DType, Device};

use crate::error::{Error, Result};
use crate::hub::Door;
use crate::interrupt::Interrupt;
use crate::ui::Ui;

/// Options that hold for a whole command. There is no other global state.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where tensors live.
    pub device: DeviceChoice,
    /// What is computed in; `None` leaves it to the recipe, whose default is f32.
    pub dtype: Option<Dtype>,
    /// The memory that may be used; `None`: the machine's.
    pub memory: Option<u64>,
    /// Nothing may use the network.
    pub offline: bool,
    /// Where repositories come from.
    pub hub: Door,
    /// Results as JSON.
    pub json: bool,
    /// What goes to stderr.
    pub ui: Ui,
    /// The signal handler's state.
    pub interrupt: Interrupt,
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where this build has support for one and one is there, the CPU otherwise.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("found `{text}`, expected auto, cpu, cuda, cuda:<n> or metal")),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device, or says why it can't be used.
    pub fn open(self) -> Result<Device> {
        let refused = |reason: String| Error::Device { device: self.to_string(), reason };
        let without = |feature: &str| {
            refused(format!(
                "this prunectl was built without it; build with `cargo build --release --features {feature}`, or give --device cpu"
            ))
        };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(n) if cfg!(feature = "cuda") => Device::new_cuda(n).map_err(|e| refused(format!("{}; give --device cpu", said(&e)))),
            Self::Cuda(_) => Err(without("cuda")),
            Self::Metal if cfg!(feature = "metal") => Device::new_metal(0).map_err(|e| refused(format!("{}; give --device cpu", said(&e)))),
            Self::Metal => Err(without("metal")),
            // A build with GPU support still has to run on a machine without one.
            Self::Auto if cfg!(feature = "cuda") => Ok(Device::new_cuda(0).unwrap_or(Device::Cpu)),
            Self::Auto if cfg!(feature = "metal") => Ok(Device::new_metal(0).unwrap_or(Device::Cpu)),
            Self::Auto => Ok(Device::Cpu),
        }
    }

    /// What `Auto` looks for before it takes the CPU.
    pub fn first_choice(self) -> Option<&'static str> {
        match self {
            Self::Auto if cfg!(feature = "cuda") => Some("CUDA device"),
            Self::Auto if cfg!(feature = "metal") => Some("Metal device"),
            _ => None,
        }
    }
}

/// What candle's error says, without the stack that RUST_BACKTRACE adds.
fn said(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => said(inner),
        error => error.to_string(),
    }
}

/// The device as metrics and reports name it.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// `--dtype`, and a model's `dtype = …`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtype(pub DType);

impl FromStr for Dtype {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f64" => Ok(Self(DType::F64)),
            "f32" => Ok(Self(DType::F32)),
            "f16" => Ok(Self(DType::F16)),
            "bf16" => Ok(Self(DType::BF16)),
            _ => Err(format!("found `{text}`, expected f32, f64, f16 or bf16")),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse_and_absent_ones_are_refused() {
        for text in ["auto", "cpu", "cuda:3", "metal"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:x", ""] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
        if !cfg!(feature = "cuda") {
            let e = DeviceChoice::Cuda(0).open().unwrap_err().to_string();
            assert!(e.contains("--features cuda"), "{e}");
        }
    }
}
