//! One page for each code.

use super::Page;

/// Every page, by code.
pub const PAGES: &[Page] = &[
    Page {
        code: "P0001",
        title: "a statement is not well formed",
        cause: "Something stands where the grammar has no place for it, or the statement ends before it is complete. The message says what would fit. Only this statement is lost; the others are still checked.",
        bad: "prune m.layers[*].attention.heads 40% using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0002",
        title: "a character that no recipe has",
        cause: "Recipes are written with ASCII letters, digits, `_` and the operators of the language; other characters may stand in strings and comments only.",
        bad: "let a = 40% ;\nprune m.layers[*].attention.heads by a using magnitude()\n",
        good: "let a = 40%\nprune m.layers[*].attention.heads by a using magnitude()\n",
    },
    Page {
        code: "P0003",
        title: "brackets or operators out of bounds",
        cause: "A bracket is never closed, or brackets are nested deeper than 128, or one expression has hundreds of operators. Name parts of it with `let`.",
        bad: "prune m.layers[*].attention.heads by 40% using loss_delta(on = d.train.sample(10)\n",
        good: "prune m.layers[*].attention.heads by 40% using loss_delta(on = d.train.sample(10))\n",
    },
    Page {
        code: "P0004",
        title: "a string without an end",
        cause: r###"A string ends on the line on which it begins. A line break in it is written `\n`."###,
        bad: r###"save m to "out/small
"###,
        good: r###"save m to "out/small"
"###,
    },
    Page {
        code: "P0005",
        title: "chained comparison",
        cause: "`a < b < c` would compare the result of a comparison. Join two comparisons with `and`.",
        bad: "eval accuracy() of m on d.test as acc\nexpect 50% < acc < 100%\n",
        good: "eval accuracy() of m on d.test as acc\nexpect 50% < acc and acc < 100%\n",
    },
    Page {
        code: "P0006",
        title: "a brace in a string",
        cause: r###"`{name}` in a string stands for a value. A brace itself is written `\{`."###,
        bad: r###"save m to "out/{"
"###,
        good: r###"save m to "out/{name}"
"###,
    },
    Page {
        code: "P0007",
        title: "a number too large",
        cause: "The number does not fit into 64-bit floating point.",
        bad: "prune m.layers[*].attention.heads by 1e999 heads using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 12 heads using magnitude()\n",
    },
    Page {
        code: "P0008",
        title: "no such statement",
        cause: "A line begins with a word that begins no statement.",
        bad: "prun m.layers[*].attention.heads by 40% using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0101",
        title: "unknown name",
        cause: "The name has no `let`, `param`, `model`, `data` or `as` above this line. Names are defined before they are used.",
        bad: "prune m.layers[*].attention.heads by 40% using loss_delta(on = prob)\n",
        good: "let probe = d.train\nprune m.layers[*].attention.heads by 40% using loss_delta(on = probe)\n",
    },
    Page {
        code: "P0102",
        title: "defined twice",
        cause: "Names are assigned once. Inside `repeat` and `sweep` a recorded name is recorded again in each round.",
        bad: "let a = 10%\nlet a = 20%\nprune m.layers[*].attention.heads by a using magnitude()\n",
        good: "let a = 10%\nlet b = 20%\nprune m.layers[*].attention.heads by a + b using magnitude()\n",
    },
    Page {
        code: "P0103",
        title: "nothing to put into a string",
        cause: "`{name}` in a string names a `param`, a `let`, the variable of a loop, or `{name}`, the recipe's own name.",
        bad: r###"save m to "out/{sparsty}"
"###,
        good: r###"param sparsity: percent = 40%
save m to "out/{name}-{sparsity}"
"###,
    },
    Page {
        code: "P0104",
        title: "the used recipe has no such name",
        cause: "`common.x` is a `let` or `param` of the recipe that `use … as common` opened.",
        bad: r###"use "common.prune" as common
train m on d.train for 1 epochs { ..common.finetun }
"###,
        good: r###"use "common.prune" as common
train m on d.train for 1 epochs { ..common.finetune }
"###,
    },
    Page {
        code: "P0105",
        title: "a name of another sort",
        cause: "The name is known, but it names something else than this place needs: a model where data should stand, for example.",
        bad: "eval accuracy() of m on m as acc\n",
        good: "eval accuracy() of m on d.test as acc\n",
    },
    Page {
        code: "P0106",
        title: "`--set` of something that is no param",
        cause: "Only a `param` can be changed from outside.",
        bad: r###"edition 2026
# prunectl run … --set sparsty=50%
param sparsity: percent = 40%
model m = builtin("tiny-bert")
prune m.layers[*].attention.heads by sparsity using magnitude()
"###,
        good: r###"edition 2026
# prunectl run … --set sparsity=50%
param sparsity: percent = 40%
model m = builtin("tiny-bert")
prune m.layers[*].attention.heads by sparsity using magnitude()
"###,
    },
    Page {
        code: "P0107",
        title: "data has no such split or method",
        cause: "`d.train` is a split; `.sample(n)`, `.pack(1024 tokens)`, `.take(n)` and `.chat(m)` make data of data.",
        bad: "eval accuracy() of m on d.validaton as acc\n",
        good: "eval accuracy() of m on d.validation as acc\n",
    },
    Page {
        code: "P0108",
        title: "`--set` with a value of the wrong type or range",
        cause: "The value after `=` is written as in a recipe and has the param's type and range.",
        bad: r###"edition 2026
# prunectl run … --set sparsity=0.5
param sparsity: percent = 40%
model m = builtin("tiny-bert")
prune m.layers[*].attention.heads by sparsity using magnitude()
"###,
        good: r###"edition 2026
# prunectl run … --set sparsity=50%
param sparsity: percent = 40%
model m = builtin("tiny-bert")
prune m.layers[*].attention.heads by sparsity using magnitude()
"###,
    },
    Page {
        code: "P0201",
        title: "not a selector",
        cause: "A selector begins with a model and follows its parts.",
        bad: "prune 12 heads by 40% using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0202",
        title: "no index here",
        cause: "Layers and units have indices, sublayers have not; nothing is indexed twice.",
        bad: "prune m.layers[*].attention[0].heads by 40% using magnitude()\n",
        good: "prune m.layers[0].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0203",
        title: "an index that is no whole number",
        cause: "An index is a whole number, negative from the end; a range is written `1..-1`.",
        bad: "prune m.layers[50%].attention.heads by 40% using magnitude()\n",
        good: "prune m.layers[0..6].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0204",
        title: "an empty range",
        cause: "The range ends before it begins.",
        bad: "prune m.layers[6..2].attention.heads by 40% using magnitude()\n",
        good: "prune m.layers[2..6].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0205",
        title: "an index outside the model",
        cause: "The model has fewer layers or units. Indices count from 0, and from -1 backwards.",
        bad: "prune m.layers[12].attention.heads by 40% using magnitude()\n",
        good: "prune m.layers[11].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0206",
        title: "a selector that matches nothing",
        cause: "Nothing is left to select: the range is empty here, `except` took everything away, or the model has no such units.",
        bad: "prune m.layers[*].mlp.experts by 40% using magnitude()\n",
        good: "prune m.layers[*].mlp.neurons by 40% using magnitude()\n",
    },
    Page {
        code: "P0207",
        title: "no such part",
        cause: "Parts are the same for every family: `layers`, `attention`, `attention.heads`, `attention.kv_groups`, `mlp`, `mlp.neurons`, `mlp.experts`, `linears`, `linears.weights`, `hidden`, `embeddings`, `head`, `classifier`.",
        bad: "prune m.layers[*].attention.head by 40% using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0208",
        title: "no matrix matches",
        cause: r###"`m.tensors("glob")` matches the names of matrices as the model's files have them (of a fused one also its parts, as `NAME[q]`); `*` stands for any run of characters."###,
        bad: r###"prune m.tensors("*.querry.*") by 40% using magnitude()
"###,
        good: r###"prune m.tensors("*.q.*") by 40% using magnitude()
"###,
    },
    Page {
        code: "P0209",
        title: "scores for other units",
        cause: "The criterion, or the stored score, says nothing about these units.",
        bad: "prune m.layers[*].attention.heads by 40% using wanda(on = d.train)\n",
        good: "prune m.layers[*].linears.weights by 40% using wanda(on = d.train)\n",
    },
    Page {
        code: "P0210",
        title: "two models in one selector",
        cause: "A selector takes units of one model.",
        bad: "model n = copy(m)\nprune m.layers[*].attention.heads | n.layers[*].attention.heads by 40% using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0211",
        title: "this can't be pruned",
        cause: "The embeddings, heads and whole matrices have no units. Single weights of matrices are `.linears.weights`.",
        bad: "prune m.layers[*].linears by 40% using magnitude()\n",
        good: "prune m.layers[*].linears.weights by 40% using magnitude()\n",
    },
    Page {
        code: "P0301",
        title: "another type",
        cause: "The place needs a value of another type.",
        bad: r###"prune m.layers[*].attention.heads by "much" using magnitude()
"###,
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0302",
        title: "a number without its unit",
        cause: "The place needs a unit: `40%`, `2048 tokens`, `100 steps`.",
        bad: "eval perplexity(window = 2048) of m on d.test as ppl\n",
        good: "eval perplexity(window = 2048 tokens) of m on d.test as ppl\n",
    },
    Page {
        code: "P0303",
        title: "another unit",
        cause: "The number has a unit that does not fit the place.",
        bad: "prune m.layers[*].attention.heads by 12 neurons using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 12 heads using magnitude()\n",
    },
    Page {
        code: "P0304",
        title: "no such unit",
        cause: "Units are `%`, `pp`, `tokens`, `steps`, `epochs`, `heads`, `groups`, `neurons`, `layers`, `experts`, `channels`, `K`, `M`, `B`, `bytes`, `KiB`, `MiB`, `GiB`, `ms`, `s`, `min`, `h`; singular and plural mean the same.",
        bad: "prune m.layers[*].attention.heads by 12 haeds using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 12 heads using magnitude()\n",
    },
    Page {
        code: "P0305",
        title: "no amount",
        cause: "An amount is a percent, a count of units, or `2 of 4`. It states what is removed.",
        bad: "prune m.layers[*].linears.weights by 2:4 using magnitude()\n",
        good: "prune m.layers[*].linears.weights by 2 of 4 using magnitude()\n",
    },
    Page {
        code: "P0306",
        title: "out of range",
        cause: "The value lies outside what the place allows.",
        bad: "prune m.layers[*].attention.heads by 140% using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0307",
        title: "not a whole number",
        cause: "Counts are whole numbers, not negative.",
        bad: "prune m.layers[*].attention.heads by 1.5 heads using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 2 heads using magnitude()\n",
    },
    Page {
        code: "P0308",
        title: "units that do not go together",
        cause: "Sums need equal units; a product has at most one; nothing is divided by zero.",
        bad: "let a = 10% + 3 heads\nprune m.layers[*].attention.heads by a using magnitude()\n",
        good: "let a = 10% + 3%\nprune m.layers[*].attention.heads by a using magnitude()\n",
    },
    Page {
        code: "P0309",
        title: "a schedule without a length",
        cause: "Before `then` a schedule must say how long it lasts.",
        bad: "train m on d.train for 1 epochs { optimizer = adamw(lr = linear(0 -> 1e-3) then hold(1e-3)) }\n",
        good: "train m on d.train for 1 epochs { optimizer = adamw(lr = linear(0 -> 1e-3, for = 5%) then hold(1e-3)) }\n",
    },
    Page {
        code: "P0310",
        title: "an amount that does not fit",
        cause: "The amount does not fit the selector: `2 of 4` removes weights, a list has one amount per layer, `of` is followed by `remaining` or `params`.",
        bad: "prune m.layers[*].attention.heads by 2 of 4 using magnitude()\n",
        good: "prune m.layers[*].linears.weights by 2 of 4 using magnitude()\n",
    },
    Page {
        code: "P0311",
        title: "not a bound",
        cause: "Behind `to` stands what may stay: limits joined by `and`, or a shape.",
        bad: "prune m.layers[*].attention.heads to 60% using magnitude()\n",
        good: "prune m.layers[*].attention.heads to params <= 60% of dense using magnitude() { on = d.train.sample(64, seed = 0) }\n",
    },
    Page {
        code: "P0312",
        title: "not a condition",
        cause: "A condition compares numbers and metrics: `after >= before - 1 pp`.",
        bad: "eval accuracy() of m on d.test as acc\nexpect acc\n",
        good: "eval accuracy() of m on d.test as acc\nexpect acc >= 80%\n",
    },
    Page {
        code: "P0313",
        title: "no such type of param",
        cause: "Types are `percent`, `count`, `float`, `tokens`, `steps`, `epochs`, `bool`, `string`, `path`, `source`.",
        bad: "param s: percentage = 40%\nprune m.layers[*].attention.heads by s using magnitude()\n",
        good: "param s: percent = 40%\nprune m.layers[*].attention.heads by s using magnitude()\n",
    },
    Page {
        code: "P0314",
        title: "a range of something that has none",
        cause: "Only numbers have a range.",
        bad: r###"param out: string = "a" in "a"..="c"
save m to out
"###,
        good: r###"param out: string = "a"
save m to out
"###,
    },
    Page {
        code: "P0401",
        title: "no such method",
        cause: "The catalogue has no such method of this kind; `prunectl explain NAME` shows those it has.",
        bad: "prune m.layers[*].attention.heads by 40% using magnitud()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0402",
        title: "no such argument",
        cause: "The method has no argument of that name.",
        bad: "prune m.layers[*].attention.heads by 40% using magnitude(nrom = l1)\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude(norm = l1)\n",
    },
    Page {
        code: "P0403",
        title: "something is missing",
        cause: "The call or statement needs one more value.",
        bad: "prune m.layers[*].attention.heads by 40% using loss_delta()\n",
        good: "prune m.layers[*].attention.heads by 40% using loss_delta(on = d.train)\n",
    },
    Page {
        code: "P0404",
        title: "given twice",
        cause: "One name, one value. A later spread `..record` may replace an earlier one.",
        bad: "prune m.layers[*].attention.heads by 40% using magnitude() { align = 2  align = 4 }\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude() { align = 4 }\n",
    },
    Page {
        code: "P0405",
        title: "one argument too many",
        cause: "The method takes fewer arguments.",
        bad: "eval accuracy(3) of m on d.test as acc\n",
        good: "eval accuracy() of m on d.test as acc\n",
    },
    Page {
        code: "P0406",
        title: "not one of the choices",
        cause: "The place takes one of a few words.",
        bad: "prune m.layers[*].attention.heads by 40% using magnitude(norm = l3)\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude(norm = l2)\n",
    },
    Page {
        code: "P0407",
        title: "a method without its brackets",
        cause: "A method is called: `magnitude()`.",
        bad: "prune m.layers[*].attention.heads by 40% using magnitude\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
    Page {
        code: "P0408",
        title: "no such option",
        cause: "The statement has no option of that name, or nothing reads it where it stands: `rescore` inside `train`, `on` beside a prune that fits nothing.",
        bad: "prune m.layers[*].attention.heads by 40% using magnitude() { at_leest = 1 head }\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude() { at_least = 1 head }\n",
    },
    Page {
        code: "P0409",
        title: "no such source",
        cause: "Models come from `hf`, `dir`, `builtin`, `init`, `copy`; data from `hf`, `text`, `csv`, `jsonl`, `parquet`, `tokens`, `builtin`.",
        bad: r###"data t = txt("a.txt")
eval perplexity() of m on t as ppl
"###,
        good: r###"data t = text("a.txt")
eval perplexity() of m on t as ppl
"###,
    },
    Page {
        code: "P0410",
        title: "data missing, or not needed",
        cause: "Some metrics are measured on data, others follow from the model alone.",
        bad: "eval accuracy() of m as acc\n",
        good: "eval accuracy() of m on d.test as acc\n",
    },
    Page {
        code: "P0411",
        title: "which model?",
        cause: "With several models an `eval` says which: `of m`.",
        bad: "model n = copy(m)\neval accuracy() on d.test as acc\n",
        good: "model n = copy(m)\neval accuracy() of n on d.test as acc\n",
    },
    Page {
        code: "P0412",
        title: "a paired comparison of one metric",
        cause: "`paired` and `confidence` compare two metrics, example by example.",
        bad: "eval accuracy() of m on d.test as acc\nexpect acc >= 80% { paired = true }\n",
        good: "eval accuracy() of m on d.test as before\neval accuracy() of m on d.test as after\nexpect after >= before - 1 pp { paired = true }\n",
    },
    Page {
        code: "P0413",
        title: "an empty path",
        cause: "`save` needs a folder.",
        bad: r###"save m to ""
"###,
        good: r###"save m to "out/small"
"###,
    },
    Page {
        code: "P0414",
        title: "can't be carried out",
        cause: "What stands around the statement leaves no way to do it: `quantize` has the last word about a model's weights, only GGUF files hold the types of GGUF, a criterion that turns the residual stream scores nothing apart from its prune, and a loader that `loads_in` names must be able to read what the prune leaves.",
        bad: "quantize m using int8()\nprune m.layers[*].linears.weights by 50% using magnitude()\n",
        good: "prune m.layers[*].linears.weights by 50% using magnitude()\nquantize m using int8()\n",
    },
    Page {
        code: "P0501",
        title: "no edition",
        cause: "The first line of a recipe is `edition 2026`. Later editions may change keywords and defaults.",
        bad: r###"model m = builtin("tiny-bert")
"###,
        good: r###"edition 2026
model m = builtin("tiny-bert")
"###,
    },
    Page {
        code: "P0502",
        title: "unknown edition",
        cause: "This build reads another edition.",
        bad: r###"edition 2031
model m = builtin("tiny-bert")
"###,
        good: r###"edition 2026
model m = builtin("tiny-bert")
"###,
    },
    Page {
        code: "P0503",
        title: "a statement in the wrong place",
        cause: "Models, data, params and `use` stand outside loops; in `train` only `prune` and `eval` may stand.",
        bad: "repeat i in 1..=2 {\n    model n = copy(m)\n}\n",
        good: "model n = copy(m)\nrepeat i in 1..=2 {\n    eval accuracy() of n on d.test as acc\n}\n",
    },
    Page {
        code: "P0504",
        title: "needs a `train` around it",
        cause: "A schedule, or a criterion that learns, needs the clock of a `train`. Outside, a prune is one-shot.",
        bad: "prune m.layers[*].attention.heads by cubic(0% -> 40%) using magnitude()\n",
        good: "train m on d.train for 1 epochs {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].attention.heads by cubic(0% -> 40%) using magnitude()\n}\n",
    },
    Page {
        code: "P0505",
        title: "a share of several kinds of unit",
        cause: "Heads and neurons can't be counted together: give every kind its share with `each`, or a share of the parameters.",
        bad: "prune m.layers[*].{attention.heads, mlp.neurons} by 50% using magnitude()\n",
        good: "prune m.layers[*].{attention.heads, mlp.neurons} by 50% each using magnitude()\n",
    },
    Page {
        code: "P0506",
        title: "an eval without a name",
        cause: "The result is recorded under the name behind `as`.",
        bad: "eval accuracy() of m on d.test\n",
        good: "eval accuracy() of m on d.test as acc\n",
    },
    Page {
        code: "P0507",
        title: "a loop without rounds",
        cause: "A `repeat` runs over a range, a `sweep` over lists that are not empty.",
        bad: "repeat i in 5..=1 {\n    eval accuracy() of m on d.test as acc\n}\n",
        good: "repeat i in 1..=5 {\n    eval accuracy() of m on d.test as acc\n}\n",
    },
    Page {
        code: "P0508",
        title: "too large",
        cause: "Written out, the recipe has more rounds or steps than anyone waits for.",
        bad: "repeat i in 1..=1_000_000 {\n    eval accuracy() of m on d.test as acc\n}\n",
        good: "repeat i in 1..=10 {\n    eval accuracy() of m on d.test as acc\n}\n",
    },
    Page {
        code: "P0509",
        title: "of another model",
        cause: "A snapshot or adapter belongs to the model that it was made of; a `prune` inside `train` to the model that is trained.",
        bad: "model n = copy(m)\nsnapshot m as early\nrewind n to early\n",
        good: "snapshot m as early\nrewind m to early\n",
    },
    Page {
        code: "P0510",
        title: "`every` outside `train`",
        cause: "`every` counts steps of a `train`. A one-shot prune scores again with `rescore`.",
        bad: "prune m.layers[*].attention.heads by 40% using magnitude() { every = 10 steps }\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude() { rescore = 10% }\n",
    },
    Page {
        code: "P0511",
        title: "a source with a computed argument",
        cause: "Arguments of sources are literals or `param`s, so that a lock can be made without running anything.",
        bad: r###"edition 2026
let where_ = "models/x"
model m = dir(where_)
save m to where_
"###,
        good: r###"edition 2026
param where_: path = "models/x"
model m = dir(where_)
save m to "out/x"
"###,
    },
    Page {
        code: "P0512",
        title: "which one to keep",
        cause: "`keep`, `stop` and `adopt … by` take a rule with the name of an `eval`: `lowest(val)`, `highest(acc)`, `stale(val, after = 3)`.",
        bad: "train m on d.train for 1 epochs {\n    optimizer = adamw(lr = 1e-4)\n    keep = val\n    eval loss() on d.validation as val { every = 10 steps }\n}\n",
        good: "train m on d.train for 1 epochs {\n    optimizer = adamw(lr = 1e-4)\n    keep = lowest(val)\n    eval loss() on d.validation as val { every = 10 steps }\n}\n",
    },
    Page {
        code: "P0513",
        title: "nothing for `reconstruct` to fit",
        cause: "`reconstruct = …` fits the matrices that heads, KV groups and neurons write through, after a one-shot prune. Where single weights, sublayers, layers or channels go, and inside `train`, something else recovers.",
        bad: "prune m.layers[*] by 1 layers using magnitude() { reconstruct = least_squares  on = d.train.sample(64, seed = 0) }\n",
        good: "prune m.layers[*].mlp.neurons by 40% using magnitude() { reconstruct = least_squares  on = d.train.sample(64, seed = 0) }\n",
    },
    Page {
        code: "P0514",
        title: "weights of before a turn",
        cause: "A criterion such as `slice` turns the residual stream: what it masks are channels of the turned network, and weights of before know no such channels.",
        bad: r###"snapshot m as early
prune m.hidden by 20% using slice(on = d.train)
rewind m to early
compact m
"###,
        good: r###"prune m.hidden by 20% using slice(on = d.train)
snapshot m as turned
train m on d.train for 10 steps { optimizer = adamw(lr = 1e-3) }
rewind m to turned
compact m
"###,
    },
    Page {
        code: "P0601",
        title: "can't open the used recipe",
        cause: "The path of a `use` starts from the folder of the recipe that names it.",
        bad: r###"use "comon.prune" as common
train m on d.train for 1 epochs { ..common.finetune }
"###,
        good: r###"use "common.prune" as common
train m on d.train for 1 epochs { ..common.finetune }
"###,
    },
    Page {
        code: "P0602",
        title: "recipes that use each other",
        cause: "`use` makes no circles.",
        bad: r###"use "circle.prune" as again
"###,
        good: r###"use "common.prune" as common
train m on d.train for 1 epochs { ..common.finetune }
"###,
    },
    Page {
        code: "P0603",
        title: "only lets and params can be used",
        cause: "Models, data and steps of another recipe stay there.",
        bad: r###"use "common.prune" as common
eval accuracy() of common.m on d.test as acc
"###,
        good: r###"use "common.prune" as common
train m on d.train for 1 epochs { ..common.finetune }
"###,
    },
    Page {
        code: "P0901",
        title: "a name that nothing uses",
        cause: "A `let` or `param` without a use is often a typo elsewhere.",
        bad: "let probe = d.train\nprune m.layers[*].attention.heads by 40% using magnitude()\n",
        good: "let probe = d.train\nprune m.layers[*].attention.heads by 40% using loss_delta(on = probe)\n",
    },
    Page {
        code: "P0902",
        title: "saved with masked units",
        cause: "`prune` masks; only `compact` makes tensors smaller. With `layout = padded` zeros are what is wanted, and nothing is said.",
        bad: r###"prune m.layers[*].attention.heads by 40% using magnitude()
save m to "out/small"
"###,
        good: r###"prune m.layers[*].attention.heads by 40% using magnitude()
compact m
save m to "out/small"
"###,
    },
    Page {
        code: "P0903",
        title: "nothing to compact",
        cause: "No statement above masks anything of this model.",
        bad: "compact m\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\ncompact m\n",
    },
    Page {
        code: "P0904",
        title: "a prune that removes nothing",
        cause: "0% removes nothing.",
        bad: "prune m.layers[*].attention.heads by 0% using magnitude()\n",
        good: "prune m.layers[*].attention.heads by 40% using magnitude()\n",
    },
];
