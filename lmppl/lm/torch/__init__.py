"""Language models run here, by torch: `TorchLM` and what it is made of.

| files | what they hold |
| --- | --- |
| `model`, `files`, `check`, `lora` | the model: loading, what is supported, adapters |
| `rows`, `prefill`, `draw`, `weights`, `noise`, `score` | a batch: opening, drawing, scoring |
| `cache`, `pages`, `reading`, `attend`, `store`, `tidy`, `room`, `memory` | keys and values in pages |
| `network`, `native`, `same` | one pass: our own, that of transformers, the same bits in any batch |
| `llama` | the network of most small models, without transformers |
"""

from lmppl.lm.torch.model import TorchLM as TorchLM

__all__ = ["TorchLM"]
