//! Rows of loss terms known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, Kind, Param, Ty};

use super::LossTerm;
use crate::row::{other, param, required, within};

const TEACHER: Param = required("teacher", Ty::Model, "The model to imitate: another model, or `frozen(m)`.");

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn LossTerm> = Entry { spec: $spec, build: None };
    };
}

planned!(
    HIDDEN,
    other(
        Kind::Loss,
        "hidden",
        "Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding (2020), eq. 8",
        &[
            TEACHER,
            param(
                "map",
                Ty::OneOf(&["same", "uniform", "last"]),
                "uniform",
                "Which teacher layer each student layer imitates when layers were removed."
            ),
        ],
        "Mean squared error between hidden states, through a learned projection where widths differ.",
    )
);
planned!(
    ATTENTION_MAPS,
    other(
        Kind::Loss,
        "attention_maps",
        "Jiao et al., TinyBERT (2020), eq. 7",
        &[TEACHER, param("kind", Ty::OneOf(&["mse", "kl"]), "mse", "The distance between maps.")],
        "Distance between attention maps, averaged over the heads that both have. Padding never counts.",
    )
);
planned!(
    MINILM,
    other(
        Kind::Loss,
        "minilm",
        "Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation (2021), eq. 5-7",
        &[TEACHER, within(param("relation_heads", Ty::Count, "12", "Relation heads; must divide both hidden sizes."), 1.0, 4096.0),],
        "KL between the self-relations of queries, keys and values of one teacher layer and the student's last.\n\n\
         Mind: relation heads need not equal attention heads.",
    )
);
planned!(
    RELATION,
    other(
        Kind::Loss,
        "relation",
        "Park et al., Relational Knowledge Distillation (2019), eq. 4-9",
        &[
            TEACHER,
            param("distance", Ty::Float, "1", "Weight of the distance term."),
            param("angle", Ty::Float, "2", "Weight of the angle term."),
        ],
        "Huber loss between pairwise distances (normalised by their mean) and angles of examples' embeddings.",
    )
);
planned!(
    NOISY_STUDENT,
    other(
        Kind::Loss,
        "noisy_student",
        "Xie et al., Self-training with Noisy Student improves ImageNet classification (2020), algorithm 1",
        &[
            TEACHER,
            within(param("noise", Ty::Percent, "10%", "Dropout of the student's units."), 0.0, 90.0),
            within(param("rounds", Ty::Count, "1", "Rounds; the student becomes the teacher."), 1.0, 100.0),
        ],
        "Cross-entropy with the teacher's soft pseudo-labels while the student is noised.",
    )
);
