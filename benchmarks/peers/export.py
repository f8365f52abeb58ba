"""Export a checkpoint with optimum-intel and convert its tokenizers as openvino-genai needs it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import openvino as ov
from contender import since_start
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVStableDiffusionXLPipeline
from transformers import AutoTokenizer

job = SimpleNamespace(**json.loads(sys.argv[1]))
OVStableDiffusionXLPipeline.from_pretrained(
    job.model, export=True, compile=False, load_in_8bit=False
).save_pretrained(job.folder)
for name in ("tokenizer", "tokenizer_2"):
    folder = Path(job.folder) / name
    model = convert_tokenizer(AutoTokenizer.from_pretrained(folder))
    ov.save_model(model, folder / "openvino_tokenizer.xml")
Path(job.result).write_text(
    json.dumps({"exported": since_start(), "exported_cpu": time.process_time()})
)
