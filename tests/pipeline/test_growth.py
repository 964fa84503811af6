"""Memory does not grow with the number of images: every method scores 1,000 and 40,000 of them in about the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oodbench.method import registry
from tests.processes import Command

pytestmark = pytest.mark.slow

# Random features of ViT-B-32's width in chunks, as the store hands them out; the tower is one matrix. What the method
# learns is learnt before; the peak counted is that of scoring.
CODE = """
import ctypes, json, resource, sys
import torch
from oodbench.method import registry
from oodbench.method import Batch, MethodResources, Needs, Sources, Task, Weights
from oodbench.method.averages import RecentTexts
from oodbench.pipeline.score import CHUNK
# M_MMAP_THRESHOLD: tensors are given back when they are freed. Otherwise glibc keeps holes between them, by chance
# more than 100 MiB, in which memory that is kept would not be seen.
ctypes.CDLL(None).mallopt(-3, 1 << 16)
torch.manual_seed(0)
name = sys.argv[1]
WIDTH, DEPTH, SIDE = 768, 512, 8
class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding = torch.nn.Embedding(512, DEPTH)
    def forward(self, tokens, offset=None, context=None):
        x = self.token_embedding(tokens) + (0 if offset is None else offset)
        return x.mean(1) + (0 if context is None else context.mean(-2))
class Captioner:
    vocabulary = 512
    def encode(self, images): return images.flatten(2)
    def next_token_logits(self, encoded, tokens): return encoded.mean(1) @ torch.randn(encoded.shape[2], 512)
class Encoder:
    scale, size, std, mean = 100.0, (SIDE, SIDE), torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    def __init__(self):
        self.matrix = torch.randn(WIDTH, DEPTH) / WIDTH ** 0.5
        self.tower = Tower().eval().requires_grad_(False)
        self.first = torch.randn(3 * SIDE * SIDE, WIDTH) / 14
    def project(self, activations): return activations @ self.matrix
    def activations(self, images): return images.flatten(1) @ self.first
    def patch_activations(self, images): return self.activations(images)[:, None]
    def pixels(self, images): return self.project(self.activations(images))
    def tokenize(self, prompts):
        return torch.tensor([[510, hash(p) % 500, len(p) % 500, 511, *20 * [0]] for p in prompts])
    def detokenize(self, token): return f"t{token}"
    def text(self, prompts): return self.tower(self.tokenize(prompts))
    def text_tower(self): return Tower()
    def captioner(self): return Captioner()
encoder = Encoder()
unit = lambda x: torch.nn.functional.normalize(x, dim=-1)
info = registry.methods()[name]
parameters = {
    "neglabel": {"share": 0.05},
    "csp": {"share": 0.01, "groups": 10},
    "negrefine": {"share": 0.01, "groups": 10, "top_classes": 2, "top_negatives": 2},
    "eoe": {"words": sys.argv[3]},
    "odin": {"memory": 0.05},
    "adaneg": {"num_negatives": 1000},
}.get(name, {})
method = registry.make(info, registry.parameters(info, parameters))
def batch(n):
    activations = torch.randn(n, WIDTH)
    embeddings = encoder.project(activations)
    pixels = torch.rand(n, 3, SIDE, SIDE) if Needs.PIXELS in method.needs else None
    labels = torch.arange(n) % 1000
    patches = unit(torch.randn(n, 49, DEPTH)) if Needs.PATCHES in method.needs else None
    before = torch.randn(n, 49, WIDTH) if Needs.PATCH_ACTIVATIONS in method.needs else None
    views = unit(torch.randn(n, len(method.views), DEPTH)) if Needs.VIEWS in method.needs else None
    given = unit(embeddings), embeddings, activations, pixels, labels, patches, views
    return Batch(~Needs(0), n, *given, _patch_activations=before, _base=torch.randn(n).double())
bank = unit(torch.randn(1000, DEPTH))
text, words = lambda *t: bank, lambda w, *t: unit(torch.randn(len(w), DEPTH))
sources = Sources(text, words, lambda: encoder, lambda: [batch(2000)])
task = Task([f"c{i}" for i in range(1000)], 100.0, sources)
task._recent = RecentTexts(encoder.text, limit=2000)  # it is full after a thousand images
if Needs.WEIGHTS in method.needs:
    classes = (task.classes,) if Needs.SHOTS in method.needs else ()
    tensors = method.module(encoder, *classes).state_dict()
    tensors.update({name: torch.ones_like(t) for name, t in tensors.items() if name == "seen"})  # all may be said
    task = task.for_method(~Needs(0), MethodResources(lambda: Weights(tensors, {}), lambda depends, make: make()))
with torch.no_grad():
    is_stream = Needs.STREAM in method.needs
    state = method.begin(task) if is_stream else method.fit(task)
    # As many as the engine scores at once; patches come in the batches of the extraction.
    of_patches = (Needs.PATCHES | Needs.PATCH_ACTIVATIONS) & method.needs
    peaks, chunk = [], 128 if of_patches else -(-CHUNK // (1 + len(method.views)))
    for n in (1_000, int(sys.argv[2])):
        for start in range(0, n, chunk):
            given = batch(min(chunk, n - start))
            if is_stream:
                state = method.step(given, task, state)[1]
            else:
                method.score(given, task, state)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(peaks))
"""


@pytest.mark.parametrize("name", [name for name, info in registry.methods().items() if not info.problem])
def test_memory_is_constant_from_1_000_to_40_000_images(name: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CODE)
    (tmp_path / "names.txt").write_text("a galaxy\na waterfall\n")
    fewer = {
        "zoc": "20000",
        "odin": "20000",
        "zoc_coca": "20000",
        "cover": "10000",
        **dict.fromkeys(("gl_mcm", "locoop", "sct", "gallop"), "5000"),
        "negrefine": "5000",
        "tanl": "10000",
    }
    images = fewer.get(name, "40000")
    running = Command(name, images, str(tmp_path / "names.txt"), program=tmp_path / "program.py")
    said, errors = running.communicate(timeout=500)
    assert running.returncode == 0, errors
    few, many = json.loads(said)
    assert many - few < 60, f"{name}: {few:.0f} MiB after 1,000 images, {many:.0f} MiB after {images}"
