"""pilots: real use cases on real data, each the shortest complete example of its kind."""
