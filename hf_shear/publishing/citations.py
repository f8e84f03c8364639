"""The papers behind a model, each cited only where its method was used."""

from __future__ import annotations

SHEARED_LLAMA = """@inproceedings{xia2024sheared,
  title={Sheared {LLaMA}: Accelerating Language Model Pre-training via Structured Pruning},
  author={Mengzhou Xia and Tianyu Gao and Zhiyuan Zeng and Danqi Chen},
  booktitle={International Conference on Learning Representations},
  year={2024},
  url={https://arxiv.org/abs/2310.06694}
}"""
LLM_SURGEON = """@inproceedings{vanderouderaa2024surgeon,
  title={The {LLM} Surgeon},
  author={Tycho F. A. van der Ouderaa and Markus Nagel and Mart van Baalen and Yuki M. Asano and Tijmen Blankevoort},
  booktitle={International Conference on Learning Representations},
  year={2024},
  url={https://arxiv.org/abs/2312.17244}
}"""
P2_LAW = """@inproceedings{chen2025p2law,
  title={P$^2$ Law: Scaling Law for Post-Training After Model Pruning},
  author={Xiaodong Chen and Yuxuan Hu and Xiaokang Zhang and Yanling Wang and Cuiping Li and Hong Chen and Jing Zhang},
  booktitle={Annual Meeting of the Association for Computational Linguistics},
  year={2025},
  url={https://arxiv.org/abs/2411.10272}
}"""


def citations(results: dict, provenance: dict | None) -> str:
    """BibTeX entries of the papers whose methods made this model."""
    found = [SHEARED_LLAMA]
    if "surgeon" in str(((provenance or {}).get("prune_config") or {}).get("criterion", "")).lower():
        found.append(LLM_SURGEON)
    if "p2_law" in results:
        found.append(P2_LAW)
    return "\n\n".join(found)
