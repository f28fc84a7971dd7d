from typing import Any

from postprocessing.rife.parts import Blend


class Model(Blend):
    def inference(self, img0: Any, img1: Any, scale: float = 1.0) -> Any:
        return self.blend(img0, img1, 0.5)
