"""fourstep inside the tools that people work in: nodes for ComfyUI, a command of optimum-cli."""
