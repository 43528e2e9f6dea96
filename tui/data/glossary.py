"""The words of the explorer, each in a sentence or two. `?` shows them, and docs/GLOSSARY.md is generated from them."""

from __future__ import annotations

GLOSSARY = (
    ("projection", "One weight matrix of a layer, m rows by n columns. Its full rank is min(m, n)."),
    ("role", "What a projection is for: query, key, value, output, gate, up, down ..."),
    ("block", "The part of a layer that it belongs to: attention, mlp, expert ..."),
    ("address", "Its name here, unique in the model: layers.12.attention.key. Filters are parts of it, or globs."),
    (
        "singular values",
        "sigma_1 >= sigma_2 >= ...: the matrix is a sum of as many matrices of rank 1, of these sizes.",
    ),
    ("spectrum", "All singular values of a projection. Computing it needs the weights, looking at it does not."),
    (
        "energy",
        "sigma^2. The k largest hold a share of the sum, energy(k). Keep k and drop the rest: no other rank k "
        "comes closer, and the relative error is sqrt(1 - energy(k)).",
    ),
    (
        "direction",
        "sigma_i with its two vectors: v_i, a mixture of the inputs, becomes sigma_i u_i, a mixture of the outputs. "
        "i says what the first one is of: one neuron, a few channels, or many.",
    ),
    (
        "participation",
        "1 / sum u^4: how many channels carry a direction. 1 where one holds all of it, m where all m hold as much. "
        "The unit partic.u_1 is that of the outputs of the first direction.",
    ),
    (
        "k90",
        "The fewest singular values that hold 90 % of the energy; k80, k95 ... the same at 80, 95 % (t, T, :t 97).",
    ),
    (
        "k0",
        "The mean k90 of noise of this shape: independent Gaussian numbers of one variance (Marchenko-Pastur, + 1/2 "
        "because a rank is whole). The shape itself moves k90: 51 % of a square matrix of noise, 76 % of one at 1:4.",
    ),
    (
        "k/k0",
        "Below 1: fewer than noise needs, so the weights have structure. It compares projections of several shapes.",
    ),
    (
        "kf, k/kf",
        "The k90 of the same absolute weights with random signs. Below 1: structure that is not in their sizes "
        "alone. s computes these spectra while the unit is k/kf.",
    ),
    (
        "k*, k/k*",
        "m n / (m + n) rounded down, the break-even rank: above it two factors of rank k (m x k and k x n) have more "
        "numbers than the matrix. Where k/k* is above 1, factoring at that energy saves nothing.",
    ),
    (
        "effective rank",
        "exp(-sum p ln p) with p = sigma / sum sigma (Roy & Vetterli): how many singular values there seem to be, "
        "small ones counting less.",
    ),
    ("entropy rank", "The same with p = sigma^2 / sum sigma^2."),
    ("stable rank", "sum sigma^2 / sigma_1^2: 1 where the largest holds all energy."),
    ("particip.", "Participation ratio, (sum sigma^2)^2 / sum sigma^4: how many share the energy evenly."),
    ("nuc/spec", "sum sigma / sigma_1."),
    ("cond", "Condition number, the largest over the smallest singular value; > where that is below the noise floor."),
    (
        "weighting",
        "Energy as it counts for the inputs that occur: the spectrum of W C^1/2, C = E[x x^T] the second moment of the "
        "input, by the gains of the norms or a file (w, :weight FILE). k0 is then of noise weighted alike, kf and "
        "spikes are blank. A chart of one projection shows the raw curve dim, the weights as they are.",
    ),
    (
        "position 0",
        "The first token of a text may hold nearly all of the output energy. Above 20 % it is a sink, and k90 without "
        "is the k90 of the other tokens. A file of moments holds this share, an imatrix cannot.",
    ),
    ("held out", "Energy of text that the moments are not of, kept by the best approximation of rank k90 under them."),
    ("tokens/n", "Tokens in the moments for each input feature: below 8 ranks come out too low."),
    (
        "centred",
        "Under C - mu mu^T, mu = E[x] the mean of the input (:weight centred:FILE): what varies between tokens. For "
        "display: what factors cost is uncentred.",
    ),
    (
        "gauge",
        "The same function written by other weights (v): gains of norms folded into what they feed, the neurons of an "
        "MLP scaled so that the row of up is as long as the column of down, value and output multiplied (kv_ov).",
    ),
    (
        "k/raw",
        "k90 under the weighting, or in the fixed gauge, over that of the weights as they are; s computes both while "
        "it is the unit.",
    ),
    (
        "head, KV head",
        "Some rows of query, or of key and value, and the columns of output that they feed (7). Of H query heads H / "
        "KV neighbours share a KV head.",
    ),
    (
        "QK",
        "W_q^T W_k of a head: how the inputs of two tokens make its score. Its rank is at most the rows of the head.",
    ),
    (
        "offset",
        "How many tokens a query comes after its key (:offset 16): RoPE turns QK by it, and changes nothing at 0.",
    ),
    (
        "OV, kv_ov",
        "W_o W_v of a head: what it writes of what it reads. kv_ov: that of all heads on a KV head, one over another.",
    ),
    (
        "B A",
        "A matrix stored as two factors, as a LoRA or a checkpoint of low rank holds it: scale x B A has no more "
        "singular values than the factors share, r. Its k0 is of a product of two factors of noise.",
    ),
    ("noise floor", "What the solver can tell: smaller values are known only to be smaller."),
    (
        "num.rank",
        "Numerical rank: how many values are larger than the noise floor and than rounding; >= where others may be.",
    ),
    (
        "edge, spikes",
        "The largest singular value of noise that fits the median; spikes are the values above it, at most num.rank "
        "and at most half of all: where more are larger, the median is one of them, and some are missed.",
    ),
    (
        "plan",
        "Ranks for a budget of parameters (:plan 20%, 9): as much energy as fits, under the weighting shown. "
        "+ and - move the cut by one per cent, :plan-save FILE writes it. No training: check it with perplexity.",
    ),
    ("dense", "In a plan: a projection that stays as it is. Among numbers it counts as its full rank."),
    (
        "E(k)",
        "The energy that rank k keeps, in %: the unit energy, of one rank (:k 512) or one a role (:k q=1536 kv=512; kv "
        "is key_value, else kv_a, else key and value each), which comma and full stop move together. Two factors of "
        "rank k hold k (m + n) parameters; where k is the full rank or more, the matrix stays as it is.",
    ),
    (
        "outlier",
        "A projection whose number is more than 3 MAD from its role's median over the layers and their experts (b, B); "
        "MAD is the median of the distances from that median, at least 1 of ranks, else a hundredth of the median.",
    ),
    (
        "contrast",
        "What shades are spread over: the unit's own scale (:contrast fixed), this model, or each role by itself.",
    ),
    (
        "rank cursor",
        "A rank on the chart (h l, comma and full stop, :k 512): the energy it keeps, the parameters it takes.",
    ),
    ("scan", "Computing what the filter shows and what is not stored yet."),
    (
        "key_value",
        "Keys and values of a layer as one matrix: its k90, kv_lora, is the kv_lora_rank that MLA would take. Where "
        "attention is latent already: kv_b kv_a, and query_product q_b q_a; lora is their rank. enter computes them.",
    ),
    ("mark", "A projection chosen for comparison, by space."),
    (
        "experts",
        "MLPs of one layer, a few of which process each token. Their cell shows the median, and ^33 where the farthest "
        "is a tenth of it off or more (of ranks at least 2).",
    ),
    (
        "A, B, B/A",
        "The first model, the second, and the second's number over the first's (d). B/A of a bound: > where B's number "
        "is one, < where A's is, - where both are.",
    ),
    (
        "delta",
        "What a fine-tune B changed of A: W_B - W_A of each projection, which has a spectrum of its own: d after B/A "
        "shows these in every view, 8 as a table (rankscope delta A B).",
    ),
    (
        "above, rounding edge",
        "Of a delta: how many singular values are larger than rounding to B's type alone can make: a "
        "lower bound of how many are not rounding. The smaller of that and k is the LoRA rank that holds the change.",
    ),
    (
        "lines in 4",
        "Ranks to compare with: by default those of DeepSeek-V2's MLA (kv_lora_rank 512, q_lora_rank 1536).",
    ),
)
"""A word and its meaning."""
