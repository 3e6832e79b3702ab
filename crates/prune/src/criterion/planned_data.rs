//! Rows of criteria that score from data and gradients, known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, SiteKind};

use super::Criterion;
use crate::row::{CALIBRATION, criterion, needs_data};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Criterion> = Entry { spec: $spec, build: None };
    };
}

planned!(
    SLICE,
    needs_data(criterion(
        "slice",
        "Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and Columns (2024), sec. 3",
        &[CALIBRATION],
        &[SiteKind::Hidden],
        "Rotates the residual stream onto its principal components and cuts the smallest directions.\n\n\
         Mind: layer norms are turned into RMS norms first; the rotation is orthogonal, so the uncut model's outputs do not change.",
    ))
);
