"""The prototxt: its text, the layers in it, and the graph that they make."""
