"""Fine-tuning on this CPU: Hugging Face's Trainer, TRL's SFTTrainer and ours, on the same rows. Run it by `make bench`.

    python -m experiments.speed                       every section, about 45 minutes on two quiet cores
    python -m experiments.speed --only speed memory   these sections anew; the others stay in speed.json
    python -m experiments.speed --quick               every section on the embedded model, one round: a smoke test

Each measurement is a real Trainer in a fresh process; the ways take turns, round after round, one process at a time.
The learning rate is 0 where time is measured: the optimizer does all its work, and every way shows its loss on the same
weights. The first article of a process is warm-up and not counted. Lengths in tokens are of SmolLM2's tokenizer.

Keys of speed.json, written after every section:
  machine    cpu, cores, memory_gb, versions, date, load (1-minute load at the start: above
             0.5 something else was running)
  rates      fp32, bf16: GFLOP/s, the largest over the models' matrix products
  tokens     separate, shared: of the articles in `speed`, a row a question, and an article a row
  speed      [model][method][way]: seconds_a_qa (median), spread (min, max), peak_gb, ratio (to ours), loss; for
             ours also share: the floating point operations of its step (`count_flops`) a second, over the bf16 rate;
             cpu: the least share of the cores that a round got; far below 0.9 others ran too: run it again
  fp32       [model][method]: the same for "ours" and "hf", all in fp32
  memory     [model][method]["ours", "ours checkpointed"]: as in `speed`, on an article of 2,048 tokens; checkpointed:
             with CHECKPOINT_ABOVE of notebook 3 in every step
  attention  [model][method]["ours", "ours in one call"]: as in `speed`, on articles with 12 questions; in one call:
             with torch's own kernel under the mask of the whole row
  profile    [model][method]: the operators that take most of our second step's time, and their share of it
  questions  [model][method][questions]: seconds a QA pair      length  [model][method][way][tokens]: seconds a QA pair
  evaluation [model]: ours, generate: seconds for perplexity and answers; ratio; same: answers that are the same text
  loss       hf, ours: the losses of 20 steps of one QA pair each, in fp32; difference: the largest, relative
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

from bmwqa.report import markdown_table, page_with

HERE = Path(__file__).resolve().parent


QWEN, SMOL = "Qwen2.5-0.5B's shape", "smollm2-135m"
MODELS = {QWEN: 2, SMOL: 3}  # rounds
LENGTHS = [250, 500, 1000, 2000]
QUESTIONS = [1, 3, 6, 12]
ARTICLE_TOKENS = (1000, 1300)  # of the articles in every section but `length` and `memory`
NEW_TOKENS = 32  # of an answer in the evaluation
QWEN_CONFIG = dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24)
QWEN_CONFIG |= dict(num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768)
QWEN_CONFIG |= dict(tie_word_embeddings=True, rms_norm_eps=1e-6)
TRL_WAYS = {  # the first round tries them (fp32 on the small model), the fastest goes on
    "trl bf16": dict(bf16=True),
    "trl fp32": dict(bf16=False),
    "trl bf16, logits at once": dict(bf16=True, chunked=False),
}

# ---------------------------------------------------------------------------------------------------------------------
# In a fresh process: one model, one way, some articles


def load(model: str, dtype):
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from bmwqa.models import load_model

    torch.manual_seed(0)
    if model == QWEN:
        return AutoModelForCausalLM.from_config(Qwen2Config(**QWEN_CONFIG), dtype=dtype)
    return load_model(model, dtype=dtype)


def train(
    model: str,
    method: str,
    way: str,
    groups: list,
    warm: int = 1,
    learning_rate: float = 0.0,
    profiled: bool = False,
) -> dict:
    """Train on `groups`: the seconds a QA pair after the first `warm` steps, the losses and the peak memory.

    profiled: also "operators", the ten that take most of the time of the steps after those, with their share of it.
    """
    import bmwqa_utils as bq  # isort: skip  (first: it turns on large pages, which torch asks for at its first tensor)
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback

    from bmwqa import one_pass
    from bmwqa.models import load_tokenizer
    from bmwqa.run import PeakMemory, StepReport, checkpoint_above, choose_precision

    name, options = model, {}
    ours = way.startswith("ours")
    bf16 = ours and way != "ours fp32" and choose_precision()[0] == torch.bfloat16
    frozen = torch.bfloat16 if method == "lora" and (bf16 or "bf16" in way) else torch.float32
    model = load(name, frozen)
    set_seed(0)
    if method == "lora":
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    model.set_attn_implementation(one_pass.ATTENTION if ours and way != "ours in one call" else "sdpa")
    if way == "ours checkpointed":
        checkpoint_above(model, 0)
    if ours:
        steps, collate = groups, lambda batch: one_pass.share_prefix(batch[0])
        options = dict(compute_loss_func=one_pass.answer_loss)
    else:
        steps = [
            {
                "input_ids": group["prefix"] + branch["input_ids"],
                "labels": [-100] * len(group["prefix"]) + branch["labels"],
            }
            for group in groups
            for branch in group["branches"]
        ]
        first = 0 if warm == 0 else len(groups[0]["branches"])
        steps = steps[first - warm if warm else 0 :]  # one row is warm-up enough

        def collate(batch):
            return {key: torch.tensor([value]) for key, value in batch[0].items()}

    settings = dict(
        max_steps=len(steps),
        learning_rate=learning_rate,
        per_device_train_batch_size=1,
        disable_tqdm=True,
    )
    settings |= dict(train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", use_cpu=True)
    settings |= dict(dataloader_pin_memory=False, report_to="none", gradient_checkpointing=False)
    settings |= dict(output_dir=str(bq.ROOT / "runs" / "bench"))
    if way.startswith("trl"):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        def all_logits(outputs, labels, num_items_in_batch=None):
            return cross_entropy(outputs.logits[0, :-1].float(), labels[0, 1:])

        if not TRL_WAYS[way].get("chunked", True):
            options = dict(compute_loss_func=all_logits)
        settings |= dict(
            bf16=TRL_WAYS[way]["bf16"],
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        tokenizer = load_tokenizer(SMOL)
        data = Dataset.from_list(steps)
        arguments = SFTConfig(**settings)
        trainer = SFTTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer, **options)
    else:
        arguments = TrainingArguments(**settings, bf16=bf16, remove_unused_columns=False)
        trainer = Trainer(model, args=arguments, train_dataset=steps, data_collator=collate, **options)
    trainer.add_callback(StepReport(groups, way))
    trainer.remove_callback(PrinterCallback)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    class ProfileAfterWarmUp(TrainerCallback):  # the first step also makes the optimizer's state
        def on_step_end(self, arguments, state, control, **kwargs):
            if state.global_step == warm:
                profile.start()

    if profiled:
        trainer.add_callback(ProfileAfterWarmUp())
    wall, cpu = time.perf_counter(), time.process_time()
    with PeakMemory() as peak:
        trainer.train()
    cpu = (time.process_time() - cpu) / (time.perf_counter() - wall) / torch.get_num_threads()
    pairs = sum(len(group["branches"]) for group in groups[warm:])
    done = [log for log in trainer.state.log_history if "loss" in log]
    losses = [step["loss"] for step in done]
    loss = sum(losses[warm:]) / len(losses[warm:])
    seconds = sum(step["seconds"] for step in done[warm:]) / pairs
    result = {"seconds": seconds, "cpu": cpu, "peak_gb": peak.gb, "loss": loss, "losses": losses}
    if profiled:
        profile.stop()
        times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
        longest = sorted(times, key=times.get, reverse=True)[:10]
        result["operators"] = {key: times[key] / sum(times.values()) for key in longest}
    return result


def evaluate(model: str, rows: list) -> dict:
    """Perplexity and answers: an article with all its questions, or one forward and one `generate` a question."""
    import torch

    import bmwqa_utils as bq
    from bmwqa import one_pass
    from bmwqa.answers import generate_answers, perplexity
    from bmwqa.models import load_tokenizer
    from bmwqa.run import choose_precision

    dtype, _ = choose_precision()
    tokenizer, model = load_tokenizer(SMOL), load(model, dtype).eval()
    model.set_attn_implementation(one_pass.ATTENTION)
    end = tokenizer.eos_token_id
    model.generation_config.eos_token_id = end
    clock = time.perf_counter()
    perplexity(model, tokenizer, rows)
    answers = generate_answers(model, tokenizer, rows, NEW_TOKENS)
    ours = time.perf_counter() - clock
    model.set_attn_implementation("sdpa")
    clock, same = time.perf_counter(), 0
    for row, answer in zip(rows, answers, strict=True):
        example = bq.encode_example(tokenizer, row)
        prompt = [i for i, label in zip(*example.values(), strict=True) if label == bq.IGNORE]
        with torch.inference_mode():
            model(**{key: torch.tensor([value]) for key, value in example.items()}).loss.item()
            ids = torch.tensor([prompt])
            mask = torch.ones_like(ids)
            new = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=end,
            )
        same += tokenizer.decode(new[0, len(prompt) :], skip_special_tokens=True).strip() == answer["answer"]
    plain = time.perf_counter() - clock
    return {
        "ours": ours,
        "generate": plain,
        "ratio": plain / ours,
        "same": same,
        "questions": len(rows),
    }


def matrix_rates() -> dict:
    """GFLOP/s in fp32 and bf16, the largest over the products of a layer of both models with 1,100 tokens."""
    import torch

    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for k, n in ((896, 896), (896, 4864), (4864, 896), (576, 1536), (1536, 576)):
            x, w = torch.randn(1100, k).to(dtype), torch.randn(n, k).to(dtype)
            for _ in range(12):
                clock = time.perf_counter()
                x @ w.t()
                best[name] = max(best.get(name, 0), 2 * 1100 * k * n / (time.perf_counter() - clock) / 1e9)
    return best


def count_flops(model: str, method: str, groups: list) -> float:
    """Floating point operations that our way needs for `groups`: a multiply-add is two; forward 1, gradients 1 each.

    layers: 2 × weights × tokens, times 3 (full) or 2 (LoRA, whose frozen weights need no gradient);
    head: the same, with the supervised tokens; attention: 4 × hidden × pairs of tokens that see each other, times 3.
    """
    from transformers import AutoConfig, Qwen2Config

    import bmwqa_utils as bq
    from bmwqa import one_pass

    config = Qwen2Config(**QWEN_CONFIG) if model == QWEN else AutoConfig.from_pretrained(bq.ROOT / "models" / model)
    hidden, times = config.hidden_size, 3 if method == "full" else 2
    shared = config.num_key_value_heads / config.num_attention_heads
    weights = hidden * hidden * (2 + 2 * shared) + 3 * hidden * config.intermediate_size
    total = 0
    for group in groups:
        batch = one_pass.share_prefix(group)
        total += 2 * times * config.num_hidden_layers * weights * batch["input_ids"].shape[1]
        total += 2 * times * config.vocab_size * hidden * len(batch["logits_to_keep"])
        total += 4 * 3 * config.num_hidden_layers * hidden * batch["attention_mask"].sum().item()
    return total


# ---------------------------------------------------------------------------------------------------------------------
# In the parent: which articles, whose turn, what is written


def alone(function, *arguments, **options):
    """The value of a function that ran in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments, options)


def article_rows(questions: int = 3, tokens: tuple = ARTICLE_TOKENS) -> list[list[dict]]:
    """The rows of each article of data/sample/train whose longest row has that many tokens, `questions` rows each."""
    import bmwqa_utils as bq
    from bmwqa.models import load_tokenizer

    found, tokenizer = [], load_tokenizer(SMOL)
    articles = bq.load_articles(bq.ROOT / "data" / "sample" / "train")
    written = bq.written_rows([bq.ROOT / "data" / "questions" / "train.jsonl"], articles)
    for article in articles:
        rows = bq.build_qa_pairs(article) + [row for row in written if row["article_id"] == article["id"]]
        rows = rows[:questions]
        if len(rows) == questions and tokens[0] <= max(bq.token_lengths(rows, tokenizer)) <= tokens[1]:
            found.append(rows)
    return found


def article_groups(questions: int = 3, tokens: tuple = ARTICLE_TOKENS, cut: int | None = None) -> list[dict]:
    """The same, encoded; `cut`: the article is made that long together with its longest question and answer."""
    import bmwqa_utils as bq
    from bmwqa.models import load_tokenizer

    tokenizer, groups = load_tokenizer(SMOL), []
    for rows in article_rows(questions, tokens):
        (group,) = bq.group_by_article(rows, tokenizer)
        if cut:
            longest = max(len(branch["input_ids"]) for branch in group["branches"])
            group["prefix"] = group["prefix"][: max(cut - longest, 1)]
        groups.append(group)
    return groups


def say(*words) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def summarise(runs: list[dict]) -> dict:
    seconds = [run["seconds"] for run in runs]
    peak = max(run["peak_gb"] for run in runs)
    loss = sum(run["loss"] for run in runs) / len(runs)
    cpu = min(run["cpu"] for run in runs)
    spread = [min(seconds), max(seconds)]
    return {
        "seconds_a_qa": median(seconds),
        "spread": spread,
        "cpu": cpu,
        "peak_gb": peak,
        "loss": loss,
    }


def compare(
    model: str,
    method: str,
    ways: list[str],
    rounds: int,
    rates: dict | None = None,
    groups: list | None = None,
) -> dict:
    """The ways in turn, each round the next of `groups`; of TRL's ways only the fastest goes on after the first."""
    groups, runs = groups or article_groups(), {way: [] for way in ways}
    articles, flops = [groups[0]] + groups[1 : rounds + 1], 0.0
    for number in range(rounds):
        some = [articles[0], articles[number + 1]]
        for way in list(ways):
            runs[way].append(alone(train, model, method, way, some))
            last = runs[way][-1]
            say(
                model,
                method,
                f"round {number + 1}",
                way,
                f"{last['seconds']:.2f} s a QA pair, cpu {last['cpu']:.2f}",
            )
        trl = sorted((way for way in ways if way.startswith("trl")), key=lambda way: runs[way][0]["seconds"])
        ways = [way for way in ways if way not in trl[1:]]
    result = {way: summarise(some) for way, some in runs.items()}
    ours = result[next(way for way in result if way.startswith("ours"))]
    for entry in result.values():
        entry["ratio"] = entry["seconds_a_qa"] / ours["seconds_a_qa"]
    if rates:
        shares = []
        for number, run in enumerate(runs["ours"]):
            flops = count_flops(model, method, [articles[number + 1]])
            shares.append(flops / (3 * run["seconds"]) / 1e9 / rates["bf16"])
        ours["share"] = median(shares)
    return result


def run_section(name: str, results: dict, models: dict) -> object:
    """The value of a key of speed.json."""
    pairs = [(model, method) for model in models for method in ("full", "lora")]
    if name == "rates":
        return alone(matrix_rates)
    if name == "tokens":
        groups, branches = article_groups(), 0
        for group in groups:
            branches += sum(len(branch["input_ids"]) for branch in group["branches"])
        separate = sum(len(group["prefix"]) * len(group["branches"]) for group in groups) + branches
        return {
            "separate": separate,
            "shared": sum(len(group["prefix"]) for group in groups) + branches,
        }
    table: dict = {model: {"full": {}, "lora": {}} for model in models}
    if name == "speed":
        for model, method in pairs:
            ways = ["ours", "hf fp32", *(way for way in TRL_WAYS if model == SMOL or "bf16" in way)]
            table[model][method] = compare(model, method, ways, models[model], results["rates"])
    elif name == "fp32":
        for model, method in pairs:
            table[model][method] = compare(model, method, ["ours fp32", "hf fp32"], 1)
    elif name == "memory":
        for model, method in pairs:
            longest = article_groups(tokens=(2048, 4000), cut=2048)[:1] * 3  # the same in both rounds
            table[model][method] = compare(model, method, ["ours", "ours checkpointed"], 2, groups=longest)
    elif name == "attention":
        for model, method in pairs:
            table[model][method] = compare(model, method, ["ours", "ours in one call"], 2, groups=article_groups(12))
    elif name == "profile":
        for model, method in pairs:
            some = article_groups()[:2]
            table[model][method] = alone(train, model, method, "ours", some, profiled=True)["operators"]
    elif name == "questions":
        for questions in QUESTIONS:
            some = [group | {"branches": group["branches"][:questions]} for group in article_groups(12)[:2]]
            for model, method in pairs:
                seconds = alone(train, model, method, "ours", some)["seconds"]
                table[model][method][str(questions)] = seconds
                say(model, method, questions, "questions", f"{seconds:.2f} s a QA pair")
    elif name == "length":
        model = list(models)[-1]  # the embedded one: the others take too long for every length
        table = {model: {"full": {}, "lora": {}}}
        for tokens in LENGTHS:
            some = article_groups(tokens=(2048, 4000), cut=tokens)[:2]
            for method in ("full", "lora"):
                for way in ("ours", "hf fp32", "trl bf16"):
                    seconds = alone(train, model, method, way, some)["seconds"]
                    table[model][method].setdefault(way, {})[str(tokens)] = seconds
                    say(model, method, way, tokens, "tokens", f"{seconds:.2f} s a QA pair")
    elif name == "evaluation":
        rows = [row for some in article_rows()[:2] for row in some]
        return {model: alone(evaluate, model, rows) for model in models}
    elif name == "loss":
        groups = [
            group | {"branches": [branch]}
            for group in article_groups(tokens=(100, 1250))
            for branch in group["branches"]
        ]
        hf, ours = (
            alone(train, SMOL, "full", way, groups[:20], warm=0, learning_rate=2e-5)["losses"]
            for way in ("hf fp32", "ours fp32")
        )
        difference = max(abs(one - other) / one for one, other in zip(hf, ours, strict=True))
        return {"hf": hf, "ours": ours, "difference": difference}
    return table


def speed_section(results: dict) -> str:
    """README's part on speed, of the sections that speed.json has, and of nothing else."""
    machine, rates, rows = results["machine"], results["rates"], []
    for model, methods in results["speed"].items():
        for method, ways in methods.items():
            ours, usual = ways["ours"], ways["hf fp32"]
            trl = min(
                (ways[way] for way in ways if way.startswith("trl")),
                key=lambda entry: entry["seconds_a_qa"],
            )
            row = {
                "model": model,
                "method": method,
                "s a QA pair": "{:.2f} [{:.2f}, {:.2f}]".format(ours["seconds_a_qa"], *ours["spread"]),
                "against Trainer, fp32": f"{usual['ratio']:.1f} ×",
                "against TRL's best": f"{trl['ratio']:.1f} ×",
                "of the bf16 rate": f"{ours['share']:.0%}",
                "peak GB": f"{ours['peak_gb']:.1f}",
            }
            if "fp32" in results:
                row["against Trainer, both fp32"] = f"{results['fp32'][model][method]['hf fp32']['ratio']:.1f} ×"
            if "memory" in results:
                plain, saving = (results["memory"][model][method][way] for way in ("ours", "ours checkpointed"))
                row["GB at 2,048 tokens"] = f"{plain['peak_gb']:.1f}"
                row["the same, checkpointed"] = f"{saving['peak_gb']:.1f}, {saving['ratio']:.2f} × the time"
            if "attention" in results:
                one_call = results["attention"][model][method]["ours in one call"]
                row["attention in one call"] = f"{one_call['ratio']:.2f} × the time"
            if "questions" in results:
                seconds = results["questions"][model][method]
                row["a pair at 12 questions, to 3"] = f"{seconds['12'] / seconds['3']:.2f}"
            rows.append(row)
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; GFLOP/s: {rates['fp32']:.0f} in fp32, {rates['bf16']:.0f} in "
        f"bf16; three questions each of {ARTICLE_TOKENS[0]:,} to {ARTICLE_TOKENS[1]:,} tokens; in brackets the "
        "fastest and the slowest round.",
        "",
        markdown_table(rows),
    ]
    if "tokens" in results:
        fewer, faster = (
            results["tokens"]["separate"] / results["tokens"]["shared"],
            rates["bf16"] / rates["fp32"],
        )
        lines += [
            "",
            f"What stands in the way of more: a pass an article reads {fewer:.1f} times fewer tokens, and this "
            f"processor's bf16 is {faster:.1f} times as fast as its fp32. That is {fewer * faster:.1f} times together, "
            "if a step were nothing but matrix products. Matrix units (AMX) raise the second factor.",
        ]
    if "evaluation" in results:
        faster = ", ".join(f"{entry['ratio']:.1f} × ({model})" for model, entry in results["evaluation"].items())
        lines += ["", f"Perplexity and answers, against one `generate` a question: {faster}."]
    if "loss" in results:
        loss = results["loss"]
        lines += [
            "",
            f"Losses of {len(loss['hf'])} steps on the same rows, the Trainer's and ours, both in fp32: they differ by "
            f"{loss['difference']:.0e} at most, relative ([plot](speed_loss.png)).",
        ]
    if "profile" in results:
        lines += ["", "Where the time of our steps goes:"]
    for model, methods in results.get("profile", {}).items():
        for method, shares in methods.items():
            longest = ", ".join(f"`{name}` {share:.0%}" for name, share in list(shares.items())[:5])
            lines.append(f"- {model}, {method}: {longest}")
    for name in ("questions", "length"):
        if name in results:
            lines += ["", f"![Seconds a pair by {name}](speed_by_{name}.png)"]
    return "\n".join(lines)


def write_readme(results: dict) -> str:
    """README.md with its table of speed written anew."""
    return page_with(HERE / "README.md", "speed", speed_section(results))


def draw(results: dict) -> None:
    """The three plots, of what speed.json has."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def plot(file, curves, xlabel, ylabel, title, **axes):
        fig, ax = plt.subplots(figsize=(7, 4))
        for label, points in curves.items():
            ax.plot(
                list(map(float, points)),
                list(points.values()),
                marker="o",
                markersize=3,
                label=label,
            )
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, **axes)
        ax.legend(fontsize=8)
        fig.tight_layout()
        fig.savefig(HERE / file, dpi=110)
        plt.close(fig)

    for section, xlabel in (("length", "tokens of a row"), ("questions", "questions an article")):
        curves = {}
        for model, methods in results.get(section, {}).items():
            for method, value in methods.items():
                ways = value if section == "length" else {"ours": value}
                curves |= {f"{model}, {method}, {way}": points for way, points in ways.items()}
        if curves:
            title, scale = f"Time against {xlabel}", "log" if section == "length" else "linear"
            plot(f"speed_by_{section}.png", curves, xlabel, "seconds a QA pair", title, yscale=scale)
    if loss := results.get("loss"):
        curves = {way: dict(enumerate(loss[way], start=1)) for way in ("hf", "ours")}
        plot(
            "speed_loss.png",
            curves,
            "step (one QA pair)",
            "loss",
            f"Same rows, same order: {SMOL}, full, fp32",
        )


SECTIONS = [
    "rates", "tokens", "speed", "memory", "attention", "profile", "evaluation", "fp32", "loss", "questions", "length",
]  # fmt: skip


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # of the processes that measure
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as experiments/notebooks.py has it
    import bmwqa_utils as bq
    from bmwqa.run import choose_precision

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the embedded model, one round; writes speed_quick.json",
    )
    options = parser.parse_args()
    models, path = ({SMOL: 1}, HERE / "speed_quick.json") if options.quick else (MODELS, HERE / "speed.json")
    results = json.loads(path.read_text()) if path.exists() else {}
    packages = ("torch", "transformers", "peft", "accelerate", "trl")
    results["machine"] = {
        "cpu": describe_cpu(),
        "precision": choose_precision()[1],
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "date": date.today().isoformat(),
        "load": os.getloadavg()[0],
    }
    names = options.only if "rates" in results or "rates" in options.only else ["rates", *options.only]
    for name in names:
        clock = time.perf_counter()
        results[name] = run_section(name, results, models)
        bq.write_json(path, results)
        say(f"{name} took {(time.perf_counter() - clock) / 60:.1f} minutes")
    if not options.quick and "speed" in results:
        draw(results)
        (HERE / "README.md").write_text(write_readme(results), encoding="utf-8")


def describe_cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
