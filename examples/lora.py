"""Fine-tune a language model by LoRA on several machines: only the adapter's weights travel.

hooke run --workers 2 examples/lora.py
hooke run --workers 2 --join grpc+tls://center:29400 examples/lora.py --model Qwen/Qwen3-0.6B

Without --model it is a small transformer with random weights that reads bytes, so that it runs anywhere; the text is
the source code of Python's own library. The base model must be the same on all workers: here by its seed, elsewhere
by its name. Needs transformers and peft.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import hooke


def base_model(name: str | None) -> nn.Module:
    """A pretrained model, or a small random one that reads bytes."""
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=128, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    config.initializer_range = 0.1  # embeddings and head stay as drawn: with 0.02 no adapter makes the head sure
    return GPT2LMHeadModel(config)


def tokens(name: str | None, files: int) -> Tensor:
    """What is learned: some modules of Python's library."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)
    if name is None:
        return torch.tensor(list(text.encode("utf-8")))
    return torch.tensor(AutoTokenizer.from_pretrained(name)(text)["input_ids"])


def loss_of(model: nn.Module, data: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """The mean cross-entropy of so many pieces of the text, in nats a token."""
    starts = torch.randint(len(data) - length, (batch,), generator=generator)
    pieces = torch.stack([data[start : start + length] for start in starts])
    return model(input_ids=pieces, labels=pieces).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a name or folder that transformers knows; its download is transformers' business"
    )
    parser.add_argument("--rank", type=int, default=8, help="of the adapter")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens")
    parser.add_argument("--period", type=int, default=10, help="steps between two exchanges")
    parser.add_argument("--files", type=int, default=20, help="modules to learn")
    parser.add_argument("--seed", type=int, default=1, help="of this worker's batches")
    args = parser.parse_args()

    data = tokens(args.model, args.files)
    held_out, data = data[: len(data) // 20], data[len(data) // 20 :]
    adapter = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base_model(args.model), adapter)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, args.lr)

    with hooke.Worker(model, optimizer, hooke.EASGD(), communication_period=args.period, overlap=True) as worker:
        generator = torch.Generator().manual_seed(1000 * args.seed + worker.seed)  # each draws pieces of its own
        for step in range(1, args.steps + 1):
            loss = loss_of(model, data, args.batch, args.length, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            worker.record(examples=args.batch, loss=loss.item())
            if step % 50 == 0 or step == args.steps:
                with worker.center_weights(), torch.no_grad():
                    seen = loss_of(model, held_out, 16, args.length, torch.Generator().manual_seed(0)).item()
                worker.record(of="center", test_loss=seen)
                print(f"step {step}: the center's loss on text it has not seen is {seen:.3f} nats a token")
        center = worker.center
        say_what_it_saved(model, len(trainable), center.bytes_sent + center.bytes_received)


def say_what_it_saved(model: nn.Module, tensors: int, moved: int) -> None:
    """Bytes that went over the link, and how many the whole model would have taken."""
    travels = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{travels:,} of {whole:,} parameters travel ({tensors} tensors, {travels / whole:.1%}): {moved / 1e6:.1f} MB "
        f"in all, where the whole model would have moved {moved / 1e6 * whole / travels:.1f} MB"
    )


if __name__ == "__main__":
    main()
