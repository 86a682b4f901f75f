"""A display that shows nothing, and keeps the lines that it was to show."""

from visus.display import Display


class Listening(Display):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def line(self, text):
        self.lines.append(text)
